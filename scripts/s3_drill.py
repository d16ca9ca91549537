"""The whole main job with all paths on s3://, over two hosts, with a kill and an empty disk.

    sudo .venv/bin/python scripts/s3_drill.py [--json FILE] [--output FOLDER]

Three hosts are made (see hosts.py). On h3 runs an S3 server (moto), which holds everything; h1 and
h2 work, each with a disk of its own for what it holds for a while. Corpus -> shards over both (Ray)
-> pre-training over both (torchrun) -> a study over both (Ray) from the pre-trained model -> a
prediction by the model that comes of it. In the middle of pre-training and of the study everything
is killed, and goes on with h2 as the first host and both disks empty. The shards must be those of a
local run, the losses those of a run that nobody disturbed. Prints a table; exit 0 if every row is
as expected.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from drill_base import Table
from hosts import Hosts
from pretrain_drill import curve
from slurm_drill import wait_until

from mips_dist.data.generations import Damaged, Entry, History

ROOT = Path(__file__).resolve().parents[1]
PYTHON, BIN = sys.executable, Path(sys.executable).parent
WORKERS, STORE = ["h1", "h2"], "h3"
CPUS = 2
PORT = 5000
BUCKET = "drill"
SECRET = "not-to-be-seen"  # no file and no line may hold it
LONGEST = 1200.0  # seconds of one stage
LARGEST_DISK = "1g"  # tmpfs of a host
NUM_STEPS = 400
EXAMPLES = ROOT / "examples" / "glass_transition.csv"
PREPROCESS = ["-m", "preprocess", f"input=s3://{BUCKET}/polymers.csv", "content=topology"]
PRETRAIN = [
    str(ROOT / "mips_dist/pretrain.py"),
    f"shards=s3://{BUCKET}/shards",
    "model=debug",
    "model.descriptors=[]",
    f"num_steps={NUM_STEPS}",
    "global_batch_size=32",
    "checkpoint_every=10",
    "validate_every=100000",
    "num_threads=1",
    "held_out_fraction=0.2",
    "timeout_minutes=5",
]
STUDY = [
    str(ROOT / "mips_dist/finetune.py"),
    f"input=s3://{BUCKET}/labels.csv",
    "targets=[tg_K]",
    f"pretrained=s3://{BUCKET}/pretrain/model",
    "model=debug",
    "model.descriptors=[]",
    "num_epochs=15",
    "num_folds=4",
    "baselines=[mean]",
]
CORPUS = [
    "*" + "C" * first + middle + "C" * second + end + "*"
    for first in range(1, 41)
    for middle in ("O", "N", "S", "C(=O)")
    for second in range(1, 10)
    for end in ("O", "N", "S")
]


class Drill:
    """The rows of the table, and what they share.

    Parameters
    ----------
    hosts
        Three of them, up.
    folder
        For logs, and for the runs that all is compared with.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.table = Table()
        self.environment = {key: v for key, v in os.environ.items() if not key.startswith("RAY_")}
        self.environment |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": f"http://{hosts.address(STORE)}:{PORT}",
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MIPS_SCRATCH": "/mnt/mips-scratch",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        Path(self.environment["MIPS_SCRATCH"]).mkdir(exist_ok=True)

    # ---- hosts

    def start(self, host: str, words: list[str], log: str, **more: str) -> "subprocess.Popen[str]":
        """Begin a command on a host."""
        with (self.folder / log).open("a") as stream:
            return self.hosts.start(
                host,
                words,
                env=self.environment | more,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def run(self, host: str, words: list[str], log: str, **more: str) -> int:
        """Run a command on a host; return its exit code."""
        return self.start(host, words, log, **more).wait(LONGEST)

    def empty_disk(self, host: str) -> None:
        """Give a host that was just switched on a disk of its own, with nothing on it."""
        disk = self.environment["MIPS_SCRATCH"]
        self.hosts.run(host, ["mount", "-t", "tmpfs", "-o", f"size={LARGEST_DISK}", "tmpfs", disk])

    def replace_workers(self) -> None:
        """Switch both workers off, in the middle of whatever they do, and on with empty disks."""
        for host in WORKERS:
            self.hosts.kill(host)
        for host in WORKERS:
            self.hosts.boot(host)
            self.empty_disk(host)

    def start_store(self) -> None:
        """Start the S3 server, and put the inputs there."""
        server = ["-m", "moto.server", "-H", self.hosts.address(STORE), "-p", str(PORT)]
        self.start(STORE, [PYTHON, *server], "store.log")
        (self.folder / "polymers.csv").write_text("psmiles\n" + "\n".join(CORPUS) + "\n")
        os.environ |= {k: v for k, v in self.environment.items() if k.startswith("AWS_")}
        import fsspec

        self.s3 = fsspec.filesystem("s3")

        def is_there() -> bool:
            try:
                self.s3.mkdir(BUCKET)
                return True
            except Exception:  # botocore's own
                return False

        wait_until(is_there, 120, "the S3 server")
        self.s3.put_file(str(self.folder / "polymers.csv"), f"{BUCKET}/polymers.csv")
        self.s3.put_file(str(EXAMPLES), f"{BUCKET}/labels.csv")

    def start_ray(self, head: str) -> dict[str, str]:
        """Start Ray on both workers; return what a driver needs to find it."""
        address = f"{self.hosts.address(head)}:6379"
        ray, common = str(BIN / "ray"), [f"--num-cpus={CPUS}", "--object-store-memory=200000000"]
        for host in sorted(WORKERS, key=lambda host: host != head):
            where = f"--node-ip-address={self.hosts.address(host)}"
            words = ["--head", "--port=6379", "--include-dashboard=false"]
            if host != head:
                words = [f"--address={address}"]
            if self.run(host, [ray, "start", *words, where, *common], "ray.log") != 0:
                raise SystemExit(f"error: Ray does not start on {host}; see {self.folder}/ray.log")
        return {"RAY_ADDRESS": address}

    def stop_ray(self) -> None:
        """Stop Ray on both workers."""
        for host in WORKERS:
            self.run(host, [str(BIN / "ray"), "stop", "--force"], "ray.log")

    # ---- stages

    def preprocess(self) -> None:
        """Make shards over both workers; compare them with those of one process and a folder."""
        local = self.folder / "shards"
        words = [PYTHON, *PREPROCESS, "num_actors=1", f"output={local}"]
        code = self.run("h1", words, "preprocess-local.log")
        ray = self.start_ray("h1")
        words = [PYTHON, *PREPROCESS, "num_actors=4", f"output=s3://{BUCKET}/shards"]
        codes = code, self.run("h1", words, "preprocess.log", **ray)
        log = json.loads(self.read("shards/log.json"))
        shares = log["runs"][-1]["actors"].values()
        nodes = {share["node"] for share in shares if share["tasks"]}
        self.stop_ray()
        names = [p.name for p in local.iterdir() if p.name not in ("log.json", "card.html")]
        same = all(self.read(f"shards/{name}") == (local / name).read_bytes() for name in names)
        self.table.row(
            "corpus and shards on s3, Ray over both",
            "exit codes 0 and 0, work done on 2 hosts, the bytes of a local run",
            f"exit codes {codes[0]} and {codes[1]}, work done on {len(nodes)} hosts, "
            f"{'the' if same else 'NOT the'} bytes of a local run",
        )

    def pretrain(self, run_dir: str, log: str, first: str) -> list["subprocess.Popen[str]"]:
        """Begin pre-training with one rank on each worker, rank 0 on `first`."""
        words = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        words += [f"--master_addr={self.hosts.address(first)}", "--master_port=29500"]
        ranks = sorted(WORKERS, key=lambda host: host != first)
        return [
            self.start(
                host,
                [PYTHON, *words, f"--node_rank={rank}", *PRETRAIN, f"run_dir={run_dir}"],
                f"{log}-{host}.log",
            )
            for rank, host in enumerate(ranks)
        ]

    def pretraining(self) -> None:
        """Pre-train undisturbed into a folder, and on s3 with a kill of everything."""
        codes = [p.wait(LONGEST) for p in self.pretrain(str(self.folder / "run"), "local", "h1")]
        self.table.row("pre-training into a local folder, over both", "[0, 0]", str(codes))

        started = self.pretrain(f"s3://{BUCKET}/pretrain", "pretrain", "h1")
        wait_until(lambda: self.newest_step() > 0, LONGEST, "two checkpoints on s3")
        self.replace_workers()
        for process in started:
            process.wait(60)
        kept = self.newest_step()
        codes = [p.wait(LONGEST) for p in self.pretrain(f"s3://{BUCKET}/pretrain", "again", "h2")]
        self.table.row(
            "... on s3: both hosts switched off, on again with empty disks, rank 0 on the other",
            f"killed with step {min(kept, NUM_STEPS - 1)} of {NUM_STEPS} on s3; exit codes [0, 0]",
            f"killed with step {kept} of {NUM_STEPS} on s3; exit codes {codes}",
        )
        self.s3.get(f"{BUCKET}/pretrain/tensorboard", str(self.folder / "tensorboard/"), True)
        expected, found = curve(self.folder / "run"), curve(self.folder)
        wrong = [n for n in range(1, NUM_STEPS + 1) if found.get(n) != expected.get(n)]
        weights = "model/weights.safetensors"
        same = self.read(f"pretrain/{weights}") == (self.folder / "run" / weights).read_bytes()
        self.table.row(
            "losses and weights are those of the undisturbed run",
            f"{NUM_STEPS} steps, 0 differ, weights: same",
            f"{len(found)} steps, {len(wrong)} differ, weights: {'same' if same else 'other'}",
        )

    def study(self) -> None:
        """Run a study from the pre-trained model; kill it; go on from the other host."""
        words = [PYTHON, *STUDY, f"run_dir=s3://{BUCKET}/study"]
        ray = self.start_ray("h1")
        started = self.start("h1", words, "study.log", **ray)
        wait_until(lambda: len(self.finished_cells()) >= 1, LONGEST, "a cell on s3")
        self.replace_workers()
        started.wait(60)
        before = self.finished_cells()
        ray = self.start_ray("h2")
        code = self.run("h2", words, "study-again.log", **ray)
        self.stop_ray()
        said = (self.folder / "study-again.log").read_text()
        after, again = self.finished_cells(), re.search(r"(\d+) finished before", said)
        kept = after[: len(before)] == before and len(after) == len(set(after))
        self.table.row(
            "a study from pretrained=s3://, both hosts off and on with empty disks, driver on h2",
            f"exit code 0, {min(len(before), 7)} cells finished before, none done twice, 8 in all",
            f"exit code {code}, {again[1] if again else 'no'} cells finished before, "
            f"{'none' if kept else 'some'} done twice, {len(after)} in all",
        )
        table = list(csv.DictReader(self.read("study/results.csv").decode().splitlines()))
        self.table.row("results.csv on s3", "8 rows", f"{len(table)} rows")

    def predict(self) -> None:
        """Predict with the model on s3."""
        source, output = self.folder / "unlabelled.csv", self.folder / "predictions.csv"
        texts = [row["psmiles"] for row in csv.DictReader(EXAMPLES.open())]
        source.write_text("\n".join(["psmiles", *texts]) + "\n")
        model = f"s3://{BUCKET}/study/models/tg_K"
        words = [str(BIN / "mips"), "predict", str(source), "-m", model, "-o", str(output)]
        code = self.run("h1", words, "predict.log")
        rows = list(csv.DictReader(output.open())) if code == 0 else []
        good = sum(row["status"] == "ok" for row in rows)
        self.table.row(
            "mips predict -m s3://",
            f"exit code 0, {len(texts)} predicted",
            f"exit code {code}, {good} predicted",
        )

    def secrets(self) -> None:
        """Look for the secret key in every object and log."""
        self.s3.invalidate_cache()
        places = [
            name for name in self.s3.find(BUCKET) if SECRET.encode() in self.s3.cat_file(name)
        ]
        logs = [path for path in self.folder.rglob("*") if path.is_file()]
        places += [str(path) for path in logs if SECRET.encode() in path.read_bytes()]
        self.table.row("the secret key in objects and logs", "0 times", f"{len(places)} times")

    # ---- what is on s3

    def read(self, name: str) -> bytes:
        """Read an object."""
        self.s3.invalidate_cache()
        return bytes(self.s3.cat_file(f"{BUCKET}/{name}"))

    def newest_files(self, folder: str) -> dict[str, Entry]:
        """Return the files of the newest state of a folder."""
        history = History(f"s3://{BUCKET}/{folder}")
        while number := history.newest():
            with suppress(Damaged):  # newer ones have come meanwhile, and this one is gone
                return dict(history.read(number).files)
        return {}

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 before the second one."""
        found = re.findall(r"step-(\d+)/state\.json", " ".join(self.newest_files("pretrain")))
        return int(max(found)) if len(found) > 1 else 0

    def finished_cells(self) -> list[str]:
        """Return the cells of the study's ledger, in order."""
        entry = self.newest_files("study").get("ledger.jsonl")
        parts = entry.parts if entry else []
        text = b"".join(self.read(f"study/.state/parts/{part}") for part in parts)
        keys = ("model", "property", "fold", "seed", "protocol")
        lines = [json.loads(line) for line in text.splitlines()]
        return [" ".join(str(line[key]) for key in keys) for line in lines]


def main() -> int:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--output", type=Path, help="keep runs and logs in this new folder")
    given = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # hosts must go down then too
    hosts = Hosts(subnet=83)
    scratch = Path(tempfile.mkdtemp(prefix="mips-s3-", dir="/var/tmp"))
    folder = given.output.resolve() if given.output else scratch
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hosts.up(len(WORKERS) + 1)
        drill = Drill(hosts, folder)
        for host in WORKERS:
            drill.empty_disk(host)
        drill.start_store()
        drill.table.row("an S3 server and two hosts", "one bucket", "one bucket")
        drill.preprocess()
        drill.pretraining()
        drill.study()
        drill.predict()
        drill.secrets()
    finally:
        hosts.down()
        shutil.rmtree(scratch)
    return drill.table.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
