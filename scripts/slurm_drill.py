"""The job scripts of cluster/slurm on a real Slurm, over hosts of this machine, with real failures.

    sudo .venv/bin/python scripts/slurm_drill.py [--json FILE] [--steps 1000] [--output FOLDER]

A controller and two compute hosts are made (see hosts.py), with slurmctld, slurmd and munged of the
distribution. ray.sbatch preprocesses over both; pretrain.sbatch trains the debug model, once
undisturbed, and once while Slurm sends its notice before the time limit, a host is switched off,
and the user cancels the job. Both curves of the loss must be the same, bit for bit. Prints a table;
exit 0 if every row is as expected.
"""

import argparse
import filecmp
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drill_base import Table, wait_until
from hosts import Hosts, missing_tools
from pretrain_drill import checkpoints, curve

ROOT = Path(__file__).resolve().parents[1]
HEAD, NODES = "h1", ["h2", "h3"]
NEEDED = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
}
CPUS = 2
SECONDS_TO_START = 60.0  # of Slurm
SECONDS_TO_SETTLE = 15.0  # of a node that came back
LONGEST_JOB = 900.0  # seconds
CORPUS = [
    "*" + "C" * carbons + middle + "*" for carbons in range(1, 61) for middle in ("O", "N", "S", "")
]
TRAINING = [
    "model=debug",
    "model.descriptors=[]",
    "global_batch_size=32",
    "checkpoint_every=20",
    "validate_every=100000",
    "num_threads=1",
    "held_out_fraction=0.2",
    "timeout_minutes=2",
]


class Slurm:
    """A Slurm with a controller and two nodes.

    Parameters
    ----------
    hosts
        Three of them, up.
    folder
        For its state, configuration and logs; on all hosts.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        (folder / "slurm.conf").write_text(
            "ClusterName=drill\n"
            f"SlurmctldHost={HEAD}\n"
            "SlurmUser=root\n"
            "AuthType=auth/munge\n"
            "ProctrackType=proctrack/linuxproc\n"
            "TaskPlugin=task/none\n"
            "MpiDefault=none\n"
            f"StateSaveLocation={folder}/state\n"
            "SlurmdSpoolDir=/run/slurmd\n"
            "SlurmctldPidFile=/run/slurmctld.pid\n"
            "SlurmdPidFile=/run/slurmd.pid\n"
            "SlurmdTimeout=10\n"
            "KillWait=40\n"  # more than torchrun gives its ranks
            "ReturnToService=2\n"
            "SelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_CPU\n"
            "SlurmdParameters=config_overrides\n"
            f"NodeName={','.join(NODES)} CPUs={CPUS} RealMemory={memory}\n"
            "PartitionName=all Nodes=ALL Default=YES\n"
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=autodetect\n")
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "RANKS_PER_NODE": "1",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Start the controller and both nodes; return when they are idle."""
        self._start_on(HEAD, "slurmctld", "-i")
        for name in NODES:
            self.start_node(name)
        wait_until(lambda: self.states() == {"idle"}, SECONDS_TO_START, "both nodes to be idle")

    def start_node(self, name: str) -> None:
        """Start slurmd on a host that is on."""
        self._start_on(name, "slurmd", "-N", name)

    def _start_on(self, name: str, program: str, *words: str) -> None:
        log = self.folder / f"{program}-{name}.log"
        script = (
            "mkdir -p -m 755 /run/munge && munged --force --num-threads=2"
            f" --key-file={self.folder}/munge.key --pid-file=/run/munge/munged.pid"
            " --log-file=/run/munge/munged.log --seed-file=/run/munge/munged.seed"
            ' && exec "$@"'
        )
        command = ["bash", "-c", script, "-", program, "-D", "-L", str(log), *words]
        quiet = subprocess.DEVNULL
        self.hosts.start(
            name, command, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet
        )

    def run(self, *words: str) -> str:
        """Run a command of Slurm on the controller."""
        done = self.hosts.run(
            HEAD, list(words), env=self.environment, capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise SystemExit(f"error: {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def states(self) -> set[str]:
        """Return the states that the nodes are in."""
        done = self.hosts.run(
            HEAD,
            ["sinfo", "-h", "-o", "%T"],
            env=self.environment,
            capture_output=True,
            check=False,
        )
        return set(done.stdout.split())

    def submit(self, script: str, log: Path, *words: str, options: tuple[str, ...] = ()) -> str:
        """Queue a script of cluster/slurm as a user would; return the number of the job."""
        said = self.run(
            "sbatch", "--parsable", f"--output={log}", *options, f"cluster/slurm/{script}", *words
        )
        return said.split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        said = self.run("scontrol", "show", "job", "-o", number)
        return dict(re.findall(r"(\S+?)=(\S*)", said))

    def wait(self, number: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states; do not let Slurm hold it after a requeue."""

        def is_there() -> bool:
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                self.run("scontrol", "update", f"jobid={number}", "StartTime=now")
            return job["JobState"] in states

        wait_until(is_there, LONGEST_JOB, f"job {number} to be {' or '.join(states)}")
        return self.job(number)


class Drill:
    """The rows of the table, and what they share."""

    def __init__(self, slurm: Slurm, folder: Path, num_steps: int) -> None:
        self.slurm, self.folder, self.num_steps = slurm, folder, num_steps
        self.table = Table()
        self.log = folder / "disturbed.log"
        self.disturbed = folder / "disturbed"

    def preprocess(self) -> None:
        """Ray on one node and over both; the shards are the same."""
        source = self.folder / "polymers.csv"
        source.write_text("psmiles\n" + "\n".join(CORPUS) + "\n")
        said = []
        for nodes, output in ((1, "alone"), (2, "shards")):
            log = self.folder / f"{output}.log"
            number = self.slurm.submit(
                "ray.sbatch",
                log,
                *("python", "-m", "preprocess", f"input={source}", "content=topology"),
                f"output={self.folder / output}",
                options=(f"-N{nodes}", f"-c{CPUS}", "--time=30"),
            )
            job = self.slurm.wait(number, "COMPLETED", "FAILED", "TIMEOUT")
            found = re.search(r"Ray on (\d+ nodes: \d+ CPUs)", log.read_text())
            said.append(f"{found[1] if found else 'no Ray'}, {job['JobState']}")
        alone, both = self.folder / "alone", self.folder / "shards"
        shards = sorted(path.name for path in alone.glob("*.tar"))
        _, differing, missing = filecmp.cmpfiles(alone, both, shards, shallow=False)
        same = "same" if shards and not differing + missing else "other"
        self.table.row(
            "ray.sbatch preprocesses on one node and on two",
            f"1 nodes: {CPUS} CPUs, COMPLETED; 2 nodes: {2 * CPUS} CPUs, COMPLETED; bytes: same",
            f"{said[0]}; {said[1]}; bytes: {same}",
        )

    def submit(self, run_dir: Path, log: Path) -> str:
        """Queue a pre-training run, or its continuation."""
        return self.slurm.submit(
            "pretrain.sbatch",
            log,
            f"shards={self.folder / 'shards'}",
            f"run_dir={run_dir}",
            f"num_steps={self.num_steps}",
            *TRAINING,
            options=(f"-c{CPUS}", "--time=30", "--signal=B:USR1@120"),
        )

    def undisturbed(self) -> None:
        """Run to the end on both nodes."""
        log = self.folder / "straight.log"
        job = self.slurm.wait(
            self.submit(self.folder / "straight", log), "COMPLETED", "FAILED", "TIMEOUT"
        )
        self.table.row("pretrain.sbatch trains on two nodes", "COMPLETED", job["JobState"])

    def wait_for_steps(self, number: str) -> None:
        """Wait until a start of the disturbed run has left a checkpoint of its own."""
        self.slurm.wait(number, "RUNNING")
        before = checkpoints(self.disturbed)

        def has_more() -> bool:
            if self.slurm.job(number)["JobState"] != "RUNNING":
                raise SystemExit(f"error: job {number} ended too early; see {self.log}")
            return bool(checkpoints(self.disturbed).items() - before.items())

        wait_until(has_more, LONGEST_JOB, "a checkpoint")

    def notice(self) -> str:
        """Let the time limit come near: USR1 from Slurm, a checkpoint, a requeue."""
        number = self.submit(self.disturbed, self.log)
        self.wait_for_steps(number)
        elapsed = self.slurm.run("squeue", "-h", "-j", number, "-o", "%M")
        minutes = sum(int(n) * 60**k for k, n in enumerate(reversed(elapsed.split(":")))) // 60
        self.slurm.run("scontrol", "update", f"jobid={number}", f"TimeLimit={minutes + 2}")
        wait_until(lambda: "queued again" in self.log.read_text(), 300, "the notice of Slurm")
        wait_until(
            lambda: self.slurm.job(number)["JobState"] == "PENDING", 120, "the job to be queued"
        )
        self.slurm.run("scontrol", "update", f"jobid={number}", "TimeLimit=30")
        stopped, kept = self._stopped(), self._newest()
        self.table.row(
            "USR1 before the time limit: saves at the step where it stops",
            f"stopped after step {kept}, newest checkpoint {kept}",
            f"stopped after step {stopped}, newest checkpoint {kept}",
        )
        job = self.slurm.wait(number, "RUNNING")
        self.wait_for_steps(number)
        grown = "later" if self._newest() > kept else "earlier"
        self.table.row(
            "... is queued again by itself and continues",
            "1 restart, RUNNING, checkpoints of later steps",
            f"{job['Restarts']} restart, {job['JobState']}, checkpoints of {grown} steps",
        )
        return number

    def lost_host(self, number: str) -> None:
        """Switch a compute host off, and later on again."""
        kept, lost = self._newest(), NODES[1]
        self.slurm.hosts.kill(lost)
        wait_until(
            lambda: self.slurm.job(number)["JobState"] != "RUNNING", 300, "Slurm to see the loss"
        )
        wait_until(lambda: self.slurm.job(number)["JobState"] == "PENDING", 120, "the requeue")
        self.table.row(
            "a compute host is switched off: Slurm queues the job again",
            "PENDING, 2 restarts",
            "{JobState}, {Restarts} restarts".format(**self.slurm.job(number)),
        )
        self.slurm.hosts.boot(lost)
        self.slurm.start_node(lost)
        # Slurm holds the job for two minutes. Cut to nothing, it starts on a node whose old job is
        # not yet cleared away, and srun then waits for ever.
        time.sleep(SECONDS_TO_SETTLE)
        self.wait_for_steps(number)
        grown = "later" if self._newest() > kept else "earlier"
        self.table.row(
            "... with the host back it continues",
            "checkpoints of later steps",
            f"checkpoints of {grown} steps",
        )

    def cancelled(self, number: str) -> None:
        """Cancel the job, as its user; it saves and stays away. Submit it again."""
        self.slurm.run("scancel", number)
        job = self.slurm.wait(number, "CANCELLED")
        wait_until(lambda: self.slurm.states() == {"idle"}, 120, "the nodes to be idle")
        stopped, kept = self._stopped(), self._newest()
        self.table.row(
            "scancel: saves, is not queued again",
            f"CANCELLED, stopped after step {kept}, newest checkpoint {kept}",
            f"{job['JobState']}, stopped after step {stopped}, newest checkpoint {kept}",
        )
        again = self.submit(self.disturbed, self.log)
        job = self.slurm.wait(again, "COMPLETED", "FAILED", "TIMEOUT")
        self.table.row("... the same command finishes the run", "COMPLETED", job["JobState"])

    def compare(self) -> None:
        """Compare the curves of both runs, and the models that they left."""
        expected, found = curve(self.folder / "straight"), curve(self.disturbed)
        wrong = [n for n in range(1, self.num_steps + 1) if found.get(n) != expected.get(n)]
        weights = "model/weights.safetensors"
        files = [self.folder / run / weights for run in ("straight", "disturbed")]
        same = "same" if filecmp.cmp(*files, shallow=False) else "other"
        self.table.row(
            "losses and weights are those of the undisturbed run",
            f"{self.num_steps} steps, 0 differ, weights: same",
            f"{len(found)} steps, {len(wrong)} differ, weights: {same}",
        )

    def _stopped(self) -> int:
        said = re.findall(r"stopped after step (\d+)", self.log.read_text())
        return int(said[-1]) if said else -1

    def _newest(self) -> int:
        return int(max(checkpoints(self.disturbed), default="step--1").split("-", 1)[1])


def main() -> int:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--steps", type=int, default=1000, help="of each of the two runs")
    parser.add_argument("--output", type=Path, help="keep runs and logs in this new folder")
    given = parser.parse_args()
    if missing := missing_tools(NEEDED):
        raise SystemExit(f"error: {missing}")
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # hosts must go down then too
    hosts = Hosts(subnet=79)
    scratch = Path(tempfile.mkdtemp(prefix="mips-slurm-", dir="/var/tmp"))
    folder = given.output.resolve() if given.output else scratch
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hosts.up(1 + len(NODES))
        slurm = Slurm(hosts, folder)
        drill = Drill(slurm, folder, given.steps)
        slurm.start()
        drill.table.row("two compute hosts", "idle", " ".join(sorted(slurm.states())))
        drill.preprocess()
        drill.undisturbed()
        number = drill.notice()
        drill.lost_host(number)
        drill.cancelled(number)
        drill.compare()
    finally:
        hosts.down()
        shutil.rmtree(scratch)
    return drill.table.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
