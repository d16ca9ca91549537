"""Preprocessing, pre-training and a study over hosts of this machine, with real failures.

    sudo ./scripts/cluster_drill [--json FILE] [--output FOLDER] [--subnet 80] [--launch]

Two hosts are made (see hosts.py), and get the commands of docs/cluster.md as a user types them: Ray
by `ray start` with a token, pre-training by `deepspeed --hostfile` over SSH. Meanwhile hosts are
switched off, cables pulled, a disk filled. Shards and results must have the bytes that one host
makes, losses the bits of two ranks on one host, or be within law L8 where the number of ranks
changes on the way (no dropout; 1e-5 relative for 20 steps, 1e-3 for 200). With --launch: `ray up`
with cluster/ray/on_premises.yaml instead, see drill_launch.py. Prints a table; exit 0 if every row
is as expected.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from drill_base import ROOT, Row, Table
from drill_launch import NUM_HOSTS, LaunchDrill
from drill_pretrain import PretrainDrill
from drill_ray import RayDrill
from hosts import Hosts


def rows(hosts: Hosts, folder: Path) -> list[Row]:
    """Return all drills but those of the launch."""
    ray = RayDrill(hosts, folder)
    training = PretrainDrill(hosts, folder, folder / "alone")
    return [*ray.rows(), *training.rows(), *ray.study_rows()]


def main() -> int:
    """Run the drills."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--output", type=Path, help="keep runs and logs in this new folder")
    parser.add_argument("--subnet", type=int, default=80, help="10.SUBNET.0.0/24 of the hosts")
    parser.add_argument("--launch", action="store_true", help="`ray up` and what follows instead")
    given = parser.parse_args()
    if given.launch and ROOT.is_relative_to("/tmp"):
        raise SystemExit(f"error: hosts of --launch do not see {ROOT}; clone outside of /tmp")
    json_file = given.json.resolve() if given.json else None
    scratch = Path(tempfile.mkdtemp(prefix="mips-cluster-", dir="/var/tmp"))
    folder = given.output.resolve() if given.output else scratch
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # hosts must go down then too
    hosts, table = Hosts(subnet=given.subnet), Table()
    try:
        hosts.up(NUM_HOSTS if given.launch else 2)
        drills = LaunchDrill(hosts, folder).rows() if given.launch else rows(hosts, folder)
        for drill in drills:
            table.drill(*drill)
    except KeyboardInterrupt:
        return 130
    finally:
        hosts.down()
        shutil.rmtree(scratch)
    return table.finish(json_file)


if __name__ == "__main__":
    sys.exit(main())
