#!/usr/bin/env bash
# The one set-up of every node of every cluster here: .venv with the versions of requirements.lock,
# in the checkout that this file lies in. Safe to run again; nodes that share a disk take turns.
#
#   cluster/setup.sh           install what is missing, then check
#   cluster/setup.sh --check   check only: a line for every version that is not the locked one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "")
    exec 9>>requirements.lock # opened for its lock alone
    flock 9
    ./scripts/setup
    exec 9>&-
    ;;
  --check) ;;
  *)
    echo "usage: cluster/setup.sh [--check]" >&2
    exit 2
    ;;
esac

[ -x .venv/bin/python ] || {
  echo "error: no environment in $PWD on $(hostname); run cluster/setup.sh there" >&2
  exit 1
}
.venv/bin/python -m mips_dist.doctor.packages
