"""What ends a worker costs one polymer if it is the polymer, and none if it is anything else."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.shards import load, read_manifest
from mips_dist.errors import MipsError
from preprocess import isolation
from preprocess.isolation import Condemned, Finished, Isolated, Limits
from preprocess.journal import Journal, journal_digest
from preprocess.pool import WorkerPool
from preprocess.work import canonical_rows
from tests.preprocess.test_pipeline import (
    InlinePool,
    command,
    contents,
    corpus,
    descendants,
    in_process,
    is_alive,
    pipeline,
    table,
    wait_for,
)

FOLDER = Path(__file__).parent
CRASHES, HANGS, EATS = "*CCCCCCOCC*", "*CCCCCCSCC*", "*CCCCCCNCC*"
CRASHES_LATER = canonicalize("*CCCCCCOC*")
GOOD = ["*CC(*)C", "*OCC*", "*CC(*)c1ccccc1"]
LIMITS = Limits(seconds_per_polymer=2.0, gb_per_actor=1.0)
STRICT = ["content=topology", "seconds_per_polymer=2", "gb_per_actor=1"]


@pytest.fixture
def isolated() -> Iterator[Isolated]:
    worker = Isolated(LIMITS)
    yield worker
    if worker._child is not None:
        worker._child.kill()


def poison(path: Path, *lines: str) -> dict[str, str]:
    """Return the environment in which child processes meet these poisons."""
    path.write_text("\n".join(lines))
    path_entries = [str(FOLDER / "poison"), str(FOLDER.parent.parent)]
    return {**os.environ, "POISON": str(path), "PYTHONPATH": os.pathsep.join(path_entries)}


def canonical(worker: Isolated, texts: list[str], **known: Any) -> Finished | Condemned:
    condemned = known.get("condemned", {})
    return worker.run("canonical_rows", texts, condemned, known.get("suspect"), ())


@pytest.fixture
def poisoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    path = tmp_path / "poison"
    for key, value in poison(path, *request.param).items():
        monkeypatch.setenv(key, value)
    return path.with_name("poison.log")


@pytest.mark.parametrize("poisoned", [[f"abort {CRASHES}", f"eat {EATS}"]], indirect=True)
def test_a_text_that_ends_its_process_three_times_is_condemned(
    poisoned: Path, isolated: Isolated
) -> None:
    texts = [*GOOD, CRASHES, *GOOD, EATS]
    crashed = canonical(isolated, texts)
    assert crashed == Condemned(3, "crashed: ended its process by SIGABRT")
    assert poisoned.read_text().count("abort") == 4  # in the task, then alone
    condemned = {3: crashed.reason}
    eaten = canonical(isolated, texts, condemned=condemned, suspect=4)
    assert eaten == Condemned(7, "out_of_memory: needs more than 1 GB")
    condemned[7] = eaten.reason
    done = canonical(isolated, texts, condemned=condemned, suspect=8)
    assert isinstance(done, Finished)
    assert done.result == canonical_rows(texts, condemned)
    assert done.cpu_seconds > 0


@pytest.mark.parametrize("poisoned", [[f"abort_once {CRASHES}"]], indirect=True)
def test_a_text_that_ended_one_process_only_is_not_condemned(
    poisoned: Path, isolated: Isolated
) -> None:
    done = canonical(isolated, [*GOOD, CRASHES])
    assert isinstance(done, Finished)
    assert done.result == canonical_rows([*GOOD, CRASHES], {})
    assert poisoned.read_text().count("abort_once") == 3


@pytest.mark.parametrize("poisoned", [[f"kill {CRASHES}"]], indirect=True)
def test_no_text_is_condemned_for_a_kill(
    poisoned: Path, isolated: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_MAX_KILLS", 4)
    with pytest.raises(MipsError, match="killed 4 times from outside"):
        canonical(isolated, [*GOOD, CRASHES])
    with pytest.raises(MipsError, match="killed 4 times from outside"):
        canonical(isolated, [*GOOD, CRASHES], suspect=0)


@pytest.mark.parametrize("poisoned", [["abort together"]], indirect=True)
def test_a_task_that_ends_its_process_only_as_a_whole_is_an_error(
    poisoned: Path, isolated: Isolated
) -> None:
    texts = [canonicalize(text) for text in GOOD]
    arguments = ("000000-000", [0, 1, 2], "topology", 2, 0, 1, "rdkit")
    with pytest.raises(MipsError, match="3 polymers together end their process"):
        isolated.run("featurize_block", texts, {}, None, arguments)
    assert poisoned.read_text().count("together") == 4


def test_journal(tmp_path: Path) -> None:
    path, other = tmp_path / "verdicts.json", tmp_path / "other.json"
    settings = {"step": {"seed": 0}, "next": {"seed": 0}}
    journal = Journal(path, settings)
    assert journal.find("step", ["a", "b"]) == {}
    assert not path.exists()
    journal.add("step", "b", "crashed: x")
    journal.add("step", "a", "timed_out: y")
    assert Journal(path, settings).find("step", ["c", "b", "a"]) == {
        1: "crashed: x",
        2: "timed_out: y",
    }
    assert Journal(path, settings).find("next", ["a", "b"]) == {}
    assert Journal(path, {"step": {"seed": 1}}).find("step", ["a", "b"]) == {}

    # Another run takes over what it meets, and nothing else; order of discovery leaves no trace.
    adopting = Journal(other, settings, str(path))
    assert not other.exists()
    assert adopting.find("step", ["a"]) == {0: "timed_out: y"}
    assert [entry["text"] for entry in json.loads(other.read_bytes())] == ["a"]
    adopting.find("step", ["b"])
    assert other.read_bytes() == path.read_bytes()

    with pytest.raises(MipsError, match=r"no file .*; check the path of verdicts="):
        journal_digest(str(tmp_path / "nowhere"))
    journal.add("step", "a", "crashed: later, elsewhere")
    assert journal.find("step", ["a"]) == {0: "timed_out: y"}  # as in the rows before
    whole = path.read_bytes()
    hostile = [whole.replace(b"crashed", code) for code in (b"no", b"crashed\\n", b"\\ud800")]
    hostile += [whole[:-9], b'[{"text": "a"}]', b"7", b"\xff", b"[" * 100_000]
    for damage in hostile:
        path.write_bytes(damage)
        with pytest.raises(MipsError, match="is no journal of verdicts"):
            Journal(path, settings)


# --- with Ray -------------------------------------------------------------------------------------


@dataclass
class Site:
    """A cluster of two nodes whose child processes meet the poisons of a file."""

    cluster: Any
    worker_node: Any
    environment: dict[str, str]  # of a driver
    poison: Path

    def brew(self, *lines: str) -> None:
        self.poison.write_text("\n".join(lines))

    def processes(self, *names: str) -> list[int]:
        """Return the processes of the cluster with one of these words in their command."""
        return [
            process
            for node in self.cluster.list_all_nodes()
            for process, name in descendants(raylet(node))
            if any(word in name for word in names)
        ]

    def start(self, arguments: list[str], errors: Any = subprocess.DEVNULL) -> Any:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(arguments, env=self.environment, stdout=quiet, stderr=errors)


def raylet(node: Any) -> int:
    process: int = node.all_processes["raylet"][0].process.pid
    return process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from ray.cluster_utils import Cluster

    path = tmp_path_factory.mktemp("site") / "poison"
    environment = poison(path)
    health = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    options = {"num_cpus": 1, "object_store_memory": 100_000_000}
    head = {**options, "include_dashboard": False, "_system_config": health}
    with pytest.MonkeyPatch.context() as patch:
        for key in ("PYTHONPATH", "POISON"):
            patch.setenv(key, environment[key])
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            other = cluster.add_node(**options)
            yield Site(cluster, other, environment | {"RAY_ADDRESS": cluster.address}, path)
        finally:
            cluster.shutdown()


def test_poison_is_isolated_journaled_and_repeated(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = corpus(tmp_path / "in.csv", 400), tmp_path / "out"
    lines = source.read_text().splitlines()
    for place, text in ((40, HANGS), (60, EATS), (70, CRASHES_LATER)):
        lines.insert(place + 1, text)
    source.write_text("\n".join(lines) + "\n")
    site.brew(f"hang {HANGS}", f"eat {EATS}", f"abort featurize {CRASHES_LATER}")
    arguments = command(source, output, "num_actors=2", *STRICT)

    # The driver is killed after the worst verdict; the same command goes on without that wait.
    driver = site.start(arguments)
    journal = output / "verdicts.json"
    wait_for(lambda: journal.exists() and b"timed_out" in journal.read_bytes(), driver)
    driver.kill()
    driver.wait()
    log = site.poison.with_name("poison.log")
    num_hangs = log.read_text().count("hang")
    done = subprocess.run(
        arguments, env=site.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"{CRASHES_LATER!r} is left out; crashed" in done.stderr
    assert log.read_text().count("hang") == num_hangs

    rejects = {int(row["row"]): row["reason"] for row in table(output / "rejects.csv")}
    assert {row: rejects[row] for row in (40, 60, 70)} == {
        40: "timed_out: no result within 2 s",
        60: "out_of_memory: needs more than 1 GB",
        70: "crashed: ended its process by SIGABRT",
    }
    verdicts = json.loads(journal.read_bytes())
    assert [verdict["text"] for verdict in verdicts] == [EATS, HANGS, CRASHES_LATER]
    manifest = read_manifest(output)
    assert manifest.num_rows == len(lines) - 1
    assert manifest.num_rows == manifest.num_samples + manifest.num_merged + manifest.num_rejected
    assert manifest.rejected_by_reason["crashed"] == 1

    # Healthy workers that are told the verdicts make the same bytes, and so does every other row.
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    assert in_process(source, tmp_path / "told", f"verdicts={journal}") == 0
    assert contents(tmp_path / "told") == contents(output)
    assert in_process(source, tmp_path / "healthy") == 0
    spelled = load(tmp_path / "healthy")
    kept = dict(zip(spelled.row.tolist(), spelled.psmiles, strict=True))
    block = load(output)
    assert dict(zip(block.row.tolist(), block.psmiles, strict=True)) == {
        row: text for row, text in kept.items() if row not in rejects
    }

    assert in_process(source, output) == 0  # finished already
    journal.rename(tmp_path / "kept.json")
    assert in_process(source, output) == 1


def test_kills_leave_no_trace(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = corpus(tmp_path / "in.csv", 160), tmp_path / "out"
    site.brew("slow 0.02")
    driver = site.start(command(source, output, "num_actors=2", *STRICT))
    rng = random.Random(0)

    def workers() -> list[int]:
        return site.processes("ray::Worker", "-m preprocess.isolation")

    for _ in range(5):
        wait_for(lambda: bool(workers()), driver)
        os.kill(rng.choice(workers()), signal.SIGKILL)
        time.sleep(rng.uniform(0.2, 1.5))
    assert driver.wait(timeout=180) == 0
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    assert in_process(source, tmp_path / "calm") == 0
    assert contents(output) == contents(tmp_path / "calm")  # no verdicts.json in either


def test_a_worker_node_may_die(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = corpus(tmp_path / "in.csv", 160), tmp_path / "out"
    site.brew("slow 0.02")
    dying = raylet(site.worker_node)
    with (tmp_path / "errors").open("wb") as errors:
        driver = site.start(command(source, output, "num_actors=2", *STRICT), errors)
    # An actor starts its child when it gets work.
    wait_for(lambda: any("isolation" in name for _, name in descendants(dying)), driver)
    os.kill(dying, signal.SIGKILL)
    words = (tmp_path / "errors").read_text
    assert driver.wait(timeout=180) == 0, words()
    assert words().count("an actor died at ") == 1
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    assert in_process(source, tmp_path / "calm") == 0
    assert contents(output) == contents(tmp_path / "calm")


def test_sigterm_while_ray_starts_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:  # Ray's handler is installed early in it
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(KeyboardInterrupt):
        WorkerPool(1, LIMITS, Journal(tmp_path / "verdicts.json", {}))


def test_sigterm_to_the_driver_is_one_line(tmp_path: Path) -> None:
    source, output = corpus(tmp_path / "in.csv", 160), tmp_path / "out"
    environment = poison(tmp_path / "poison", "slow 0.5")
    driver = subprocess.Popen(
        command(source, output, "num_actors=1", *STRICT),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any("preprocess.isolation" in name for _, name in descendants(driver.pid)))
    # Ray's agents take a minute to notice that it is gone; they are light.
    family = [pid for pid, name in descendants(driver.pid) if "Agent" not in name]
    driver.terminate()
    words, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert words == ""
    progress = ("in.csv: ", "preflight: ", "canonical spellings: ")
    lines = [line for line in errors.splitlines() if not line.startswith(progress)]
    assert lines == ["interrupted; run the same command again to continue"]
    wait_for(lambda: not any(is_alive(pid) for pid in family))
