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
.venv/bin/python - <<'END_OF_PYTHON'
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

wrong, pins = [], 0
for line in Path("requirements.lock").read_text(encoding="utf-8").splitlines():
    name, is_pin, wanted = line.strip().partition("==")
    if not is_pin or name.startswith("#"):
        continue
    pins += 1
    try:
        found = version(name).partition("+")[0]  # builds for GPUs have the same version
    except PackageNotFoundError:
        found = "none"
    if found != wanted:
        wrong.append(f"error: {platform.node()}: {name} {found}, requirements.lock has {wanted}")
print("\n".join(wrong) or f"{platform.node()}: Python {platform.python_version()}, {pins} locked versions")
if wrong:
    print("error: run cluster/setup.sh on this node", file=sys.stderr)
    sys.exit(1)
END_OF_PYTHON
