"""Every row is accounted for (law L9), and a crash changes no byte (law L7)."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mips_dist.chem import psmiles as psmiles_module
from mips_dist.chem.psmiles import RepeatUnit, canonicalize
from mips_dist.chem.sample import CONTENTS, Sample, content_for
from mips_dist.config import run
from mips_dist.data.shards import load, read_manifest
from preprocess import pipeline, work
from tests.preprocess.inline import InlinePool
from tests.preprocess.processes import descendants, is_alive, wait_for

GOOD = ["*CC*", "*CC(*)C", "*CC(*)c1ccccc1", "*OCC*", "*O[Si](*)(C)C", "*CC(F)(F)*"]
ENDS = ["", "C", "CC", "O", "F", "Cl", "N", "C#N", "C(=O)OC", "c1ccccc1"]
MIDDLES = ["C", "CC", "CO", "CCO", "CC(=O)N", "CSC", "Cc1ccccc1", "C=CC"]


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)


def corpus(path: Path, size: int) -> Path:
    """Write distinct polymers, some of them twice, and a few bad rows."""
    texts = [f"*{middle}C(*){end}".replace("()", "") for middle in MIDDLES for end in ENDS]
    texts = (texts + [f"*CC{t[1:]}" for t in texts])[:size]
    texts[10:10] = ["*CC", "", "*C*.C"]
    texts += ["C(*)C*", "*CCCC*", "*[C@H](C)C*"]
    path.write_text("psmiles,note\n" + "".join(f'{text},"x, y"\n' for text in texts))
    return path


def command(source: Path, output: Path, *more: str) -> list[str]:
    overrides = [f"input={source}", f"output={output}", *more]
    return [sys.executable, "-m", "preprocess", *overrides]


def in_process(source: Path | str, output: Path, *more: str) -> int:
    argv = [f"input={source}", f"output={output}", "content=topology", *more]
    return run(pipeline.preprocess, pipeline.PreprocessConfig, "preprocess", argv)


def contents(folder: Path) -> dict[str, bytes]:
    assert all(path.is_file() for path in folder.iterdir()), "the work folder was left behind"
    # The log tells of times and actors, the card of the command: they differ from run to run.
    differing = {"log.json", "card.html"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in differing}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("inline")
def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    source, output = corpus(tmp_path / "in.csv", 150), tmp_path / "out"
    assert in_process(source, output) == 0
    texts = [row["psmiles"] for row in table(source)]
    manifest = read_manifest(output)
    block = load(output)
    rejects = {int(row["row"]): row["reason"] for row in table(output / "rejects.csv")}
    merged = {int(row["row"]): int(row["equals"]) for row in table(output / "merged.csv")}
    assert manifest.num_rows == len(texts)
    assert manifest.num_samples == len(block)
    assert sorted([*block.row.tolist(), *rejects, *merged]) == list(range(len(texts)))

    assert {row: reason.partition(":")[0] for row, reason in rejects.items()} == {
        10: "star_count",
        11: "empty",
        12: "fragments",
    }
    assert manifest.rejected_by_reason == {"empty": 1, "fragments": 1, "star_count": 1}
    assert manifest.stereo_dropped == 1
    spelling = dict(zip(block.row.tolist(), block.psmiles, strict=True))
    for row, psmiles in spelling.items():
        assert canonicalize(texts[row]) == psmiles
    assert len(set(spelling.values())) == len(spelling)
    for row, equal in merged.items():
        assert equal < row
        assert spelling[equal] == canonicalize(texts[row])
    assert block.row.tolist() == sorted(block.row.tolist())
    assert not block.descriptors
    assert block.coordinates is None


@pytest.mark.usefixtures("inline")
def test_bytes_do_not_depend_on_completion_order_chunks_or_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(tmp_path / "in.csv", 160)
    monkeypatch.setitem(pipeline.BLOCKS_PER_SHARD, "topology", 3)
    assert in_process(source, tmp_path / "one", "num_actors=1") == 0
    monkeypatch.setattr(pipeline, "CHUNK_SIZE", 7)
    assert in_process(source, tmp_path / "two", "num_actors=2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(read_manifest(tmp_path / "one").shards) > 1


@pytest.mark.usefixtures("inline")
def test_a_polymer_that_cannot_be_featurized_is_a_reject_and_so_are_its_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("psmiles\n*CC*\n*OCC*\nC(*)O*\n*CCO*\n*CC(*)C\n")
    real = work.featurize

    def poisoned(canonicals: list[str], *rest: Any) -> list[Sample]:
        if canonicalize("*OCC*") in canonicals:
            raise RuntimeError(f"bad <object at {hex(id(canonicals))}>\nsecond line")
        return real(canonicals, *rest)

    monkeypatch.setattr(work, "featurize", poisoned)
    assert in_process(source, tmp_path / "out") == 0
    reason = "featurization_failed: RuntimeError: bad <object at 0x>"
    assert table(tmp_path / "out" / "rejects.csv") == [
        {"row": "1", "reason": reason},
        {"row": "3", "reason": reason},
    ]
    assert table(tmp_path / "out" / "merged.csv") == []
    assert load(tmp_path / "out").row.tolist() == [0, 2, 4]
    assert read_manifest(tmp_path / "out").rejected_by_reason == {"featurization_failed": 2}


def test_a_canonicalization_that_raises_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(unit: RepeatUnit) -> list[int]:
        if unit.mol.GetNumAtoms() == 4:
            raise IndexError
        return backbone_path(unit)

    backbone_path = psmiles_module.backbone_path
    monkeypatch.setattr(psmiles_module, "backbone_path", broken)
    verdicts = work.canonical_rows(["*O*", "*CC*", "*N*"], {})
    assert verdicts.canonical == ["*O*", None, "*N*"]
    assert verdicts.reasons == {1: "canonicalization_failed: IndexError"}


@pytest.mark.usefixtures("inline")
def test_contents_hold_one_another(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in.csv", 24)
    blocks = {}
    for content in CONTENTS:
        assert in_process(source, tmp_path / content, f"content={content}") == 0
        blocks[content] = load(tmp_path / content)
        names = [group["name"] for group in read_manifest(tmp_path / content).descriptors]
        assert sorted(names) == sorted(blocks[content].descriptors)
        assert content_for(names) == content
    least, middle, most, xtb = (blocks[content] for content in CONTENTS)
    assert set(middle.descriptors) == {"rdkit_2d", "bands"}
    assert middle.descriptors["rdkit_2d"].tobytes() == most.descriptors["rdkit_2d"].tobytes()
    assert middle.conformer_status is None
    assert set(xtb.descriptors) == {*most.descriptors, "xtb"}
    assert xtb.descriptor_valid["xtb"].all()
    assert np.array_equal(xtb.coordinates, most.coordinates)
    for block in (middle, most, xtb):
        assert block.psmiles == least.psmiles
        assert np.array_equal(block.pair_index, least.pair_index)


@pytest.mark.usefixtures("inline")
def test_a_file_of_bad_rows_alone_gives_an_empty_set(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("CC\n=cmd\n\n")
    assert in_process(source, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").num_rejected == 3


def test_shards_are_cut_by_the_input_alone() -> None:
    sizes = [pipeline.block_size(n, "full") for n in (1, 600, 5000, 10**6)]
    assert sizes == [16, 75, 256, 256]
    assert pipeline.block_size(10**6, "topology") == 1024


@pytest.mark.usefixtures("inline")
def test_a_folder_of_another_run_or_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = corpus(tmp_path / "in.csv", 20), tmp_path / "out"

    def refused(words: str, *arguments: Any) -> None:
        before = contents(output)
        capsys.readouterr()
        assert in_process(*arguments) == 1
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
        assert contents(output) == before

    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    refused("holds something else (thesis.txt)", source, output)
    (output / "thesis.txt").unlink()

    assert in_process(source, output) == 0
    before = contents(output)
    assert in_process(source, output) == 0
    assert contents(output) == before
    refused("max_hops is 2 there and 3 here", source, output, "max_hops=3")
    other = corpus(tmp_path / "other.csv", 21)
    refused("input sha256 is", other, output)
    same = corpus(tmp_path / "renamed.csv", 20)
    assert in_process(same, output) == 0
    assert contents(output) == before
    for name in ("rejects.csv", "merged.csv"):
        (output / name).unlink()
        refused(f"{name} is missing; `python -m preprocess repair` may rebuild it", source, output)
        (output / name).write_bytes(before[name])
    shard = output / read_manifest(output).shards[0].name
    shard.write_bytes(shard.read_bytes()[:-512])
    refused("bytes instead of", source, output)


@pytest.mark.usefixtures("inline")
def test_a_begun_run_is_refused_to_another_and_to_a_second_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = corpus(tmp_path / "in.csv", 20), tmp_path / "out"

    def crash(*_: object) -> None:
        # Another run of the same command, while this one holds the folder.
        assert in_process(source, output) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "find_first_rows", crash)
    assert in_process(source, output) == 130
    assert "another run is at work" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    assert in_process(source, output, "seed=1") == 1
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert in_process(source, output, f"verdicts={source}") == 1
    assert "verdicts is none there and " in capsys.readouterr().err
    assert in_process(source, output) == 0


@pytest.mark.usefixtures("inline")
def test_altered_work_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "in.csv", 150)
    monkeypatch.setitem(pipeline.BLOCKS_PER_SHARD, "topology", 3)
    assert in_process(source, tmp_path / "whole") == 0
    output = tmp_path / "out"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "account", crash)
        assert in_process(source, output) == 130
    flipped, lost = sorted(output.glob("*.tar"))[:2]
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    lost.unlink()
    rows = output / "work" / "rows" / "000000.json"
    rows.write_bytes(rows.read_bytes()[:-5])
    assert in_process(source, output) == 0
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("inline")
def test_blocks_that_are_there_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = corpus(tmp_path / "in.csv", 150), tmp_path / "out"
    monkeypatch.setitem(pipeline.BLOCKS_PER_SHARD, "topology", 3)
    assert in_process(source, tmp_path / "whole") == 0
    made: list[str] = []
    featurize_block = work.featurize_block

    def featurize_some(texts: Any, condemned: Any, key: str, *arguments: Any) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(key)
        return featurize_block(texts, condemned, key, *arguments)

    monkeypatch.setattr(work, "featurize_block", featurize_some)
    # The number of actors seeds the order: blocks of shards that are not joined yet are among them.
    assert in_process(source, output, "num_actors=1") == 130
    assert len(made) == 5
    # A block whose file was damaged meanwhile is made again, and no other.
    (damaged, *_) = sorted((output / "work" / "blocks").glob("*.tar"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    made.remove(damaged.stem)
    first = set(made)
    made.clear()
    monkeypatch.setattr(
        work, "featurize_block", lambda *a: (made.append(a[2]), featurize_block(*a))[1]
    )
    assert in_process(source, output) == 0
    assert not first & set(made)
    assert len(first) + len(made) == 8
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["output=out"], 2, "input=FILE and output=DIR are needed"),
        (["input=nowhere.csv", "output=out"], 1, "no file nowhere.csv"),
        (["input=in.csv", "output=out", "colour=red"], 2, "colour"),
        (["input=in.csv", "output=out", "content=some"], 2, "content=some"),
        (["input=in.csv", "output=out", "column=name"], 2, "its columns are: psmiles, note"),
        (["input=in.csv", "output=out", "num_actors=0"], 2, "num_actors=0"),
        (["input=in.csv", "output=out", "seconds_per_polymer=0"], 2, "seconds_per_polymer=0"),
        (["input=in.csv", "output=out", "seconds_per_polymer=inf"], 2, "at most 1e+06"),
        (["input=in.csv", "output=https://host/out"], 2, "can only be read"),
    ],
)
def test_usage_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    corpus(tmp_path / "in.csv", 5)
    monkeypatch.chdir(tmp_path)
    assert run(pipeline.preprocess, pipeline.PreprocessConfig, "preprocess", arguments) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- with Ray -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Corpus and output of a full run with two actors."""
    folder = tmp_path_factory.mktemp("ray")
    source, output = corpus(folder / "in.csv", 160), folder / "two_actors"
    done = subprocess.run(
        command(source, output, "num_actors=2"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "166 rows" in done.stdout
    assert "Traceback" not in done.stderr
    return source, output


def test_full_content_through_ray(undisturbed: tuple[Path, Path]) -> None:
    manifest = read_manifest(undisturbed[1])
    block = load(undisturbed[1])
    assert [group["name"] for group in manifest.descriptors] == [
        "rdkit_2d",
        "atom_pair_3d",
        "bands",
    ]
    assert sum(manifest.conformer_status.values()) == len(block) == manifest.num_samples
    assert block.descriptor_valid["rdkit_2d"].all()
    assert block.descriptor_valid["atom_pair_3d"].mean() > 0.95
    assert np.array_equal(block.num_coordinates > 0, block.descriptor_valid["atom_pair_3d"])
    assert len(manifest.shards[0].blocks) == 8
    assert "<svg" in (undisturbed[1] / "card.html").read_text()


def test_the_command_on_a_finished_folder_changes_nothing(
    undisturbed: tuple[Path, Path],
) -> None:
    source, output = undisturbed
    before = contents(output), [path.stat().st_mtime_ns for path in sorted(output.iterdir())]
    done = subprocess.run(
        command(source, output, "num_actors=1"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    after = contents(output), [path.stat().st_mtime_ns for path in sorted(output.iterdir())]
    assert after == before


def test_killed_actor_and_killed_driver_leave_the_same_bytes(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    source, expected = undisturbed
    output = tmp_path / "out"
    records = output / "work" / "blocks"
    arguments = command(source, output, "num_actors=1")
    driver = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: (records / "000000-000.json").exists(), driver)
    actors = [pid for pid, name in descendants(driver.pid) if name.startswith("ray::Worker")]
    assert len(actors) == 1
    os.kill(actors[0], signal.SIGKILL)
    wait_for(lambda: (records / "000000-001.json").exists(), driver)
    family = descendants(driver.pid)
    # Ray listens on this machine alone. Its two agents notice only after a minute that it is gone.
    assert {word for _, name in family for word in name.split() if "node-ip-address=" in word} == {
        "--node-ip-address=127.0.0.1"
    }
    family = [(pid, name) for pid, name in family if "Agent" not in name]
    driver.kill()
    driver.wait()
    assert not (output / "manifest.json").exists()
    wait_for(lambda: not any(is_alive(pid) for pid, _ in family))

    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(expected)
