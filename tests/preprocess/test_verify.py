"""Every damage of a shard folder is found and named, and mended to the same bytes."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mips_dist.config import run
from mips_dist.data.files import file_sha256
from mips_dist.data.index import index_blocks
from mips_dist.data.shards import (
    MANIFEST_NAME,
    Manifest,
    decode_shard,
    encode_shard,
    read_manifest,
    read_shard_index,
)
from mips_dist.errors import MipsError
from preprocess import pipeline, repair
from preprocess.repair import RepairConfig
from preprocess.verify import VerifyConfig, faults, verify
from tests.preprocess.test_pipeline import InlinePool, contents, corpus, in_process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An input with rejected and merged rows, and the shards made of it: two, of two blocks."""
    folder = tmp_path_factory.mktemp("verify")
    source, output = corpus(folder / "in.csv", 150), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "WorkerPool", InlinePool)
        patch.setattr(pipeline, "BLOCKS_PER_SHARD", {"topology": 2, "full": 2})
        assert in_process(source, output) == 0
    assert len(read_manifest(output).shards) > 2
    assert len(read_manifest(output).shards[0].blocks) == 2
    return source, output


@pytest.fixture
def output(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the shards to damage."""
    return Path(shutil.copytree(made[1], tmp_path / "out"))


def check(folder: Path) -> int:
    return run(verify, VerifyConfig, "verify", [f"output={folder}"])


def mend(folder: Path, *more: str) -> int:
    return run(repair.repair, RepairConfig, "repair", [f"output={folder}", *more])


def first_fault(folder: Path) -> str:
    try:
        return next(faults(folder, read_manifest(folder)), "")
    except MipsError as error:
        return str(error)


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def rewrite(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Forge the manifest, its own checksum included."""
    (folder / MANIFEST_NAME).write_text(change(read_manifest(folder)).to_json())


def test_a_whole_folder_has_no_fault(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(output)
    assert check(output) == 0
    assert "no fault" in capsys.readouterr().out
    assert mend(output) == 0
    assert "0 bad files" in capsys.readouterr().out
    assert contents(output) == before


def test_every_truncation_is_found(output: Path) -> None:
    shard = output / read_manifest(output).shards[1].name
    whole = shard.read_bytes()
    assert len(whole) <= 2**20
    for size in range(0, len(whole), 512):
        shard.write_bytes(whole[:size])
        assert first_fault(output).startswith(f"{shard} has {size} bytes instead of"), size
    shard.write_bytes(whole + bytes(512))
    assert "bytes instead of" in first_fault(output)


def test_a_thousand_flipped_bits_are_found(output: Path) -> None:
    rng = np.random.default_rng(0)
    # The log and the card are no part of the data.
    files = sorted(f for f in output.iterdir() if f.name not in ("log.json", "card.html"))
    for number in range(1000):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flip(path, int(rng.integers(len(whole))), int(rng.integers(8)))
        assert path.name in first_fault(output), (path.name, number)
        path.write_bytes(whole)
    assert first_fault(output) == ""


def test_a_flipped_bit_names_file_block_and_sample(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_manifest(output).shards[1]
    start, size = record.blocks[1].members["psmiles.json"]
    shard = output / record.name
    text = shard.read_bytes()[start : start + size]
    flip(shard, start + text.index(b"C"), 0)  # "C" to "B", which is JSON still
    assert check(output) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    assert len(lines) == 2
    assert f"{shard} was altered" in lines[0]
    assert f"{shard}, block 000001-001: 1 samples are not those of the index" in lines[1]
    assert "(row " in lines[1]


def test_a_forged_shard_is_found_by_its_samples(output: Path) -> None:
    manifest = read_manifest(output)
    record = manifest.shards[0]
    blocks = list(decode_shard((output / record.name).read_bytes(), record))
    features = blocks[1].atom_features.copy()
    features[0, 0] += 1
    blocks[1] = replace(blocks[1], atom_features=features)
    data, _, forged = encode_shard(0, blocks)
    (output / record.name).write_bytes(data)
    kept = replace(forged, index_sha256=record.index_sha256, index_num_bytes=record.index_num_bytes)
    rewrite(output, lambda m: replace(m, shards=[kept, *m.shards[1:]]))
    row = int(blocks[1].row[0])
    (fault,) = faults(output, read_manifest(output))
    assert (
        f"block 000000-001: 1 samples are not those of the index, the first is sample 0 (row {row})"
        in fault
    )


def test_forged_headers_of_the_tar_file_are_found(output: Path) -> None:
    record = read_manifest(output).shards[0]
    path = output / record.name
    whole = path.read_bytes()
    start, _ = record.blocks[0].members["bonds.npz"]
    other_name, link = bytearray(whole), bytearray(whole)
    other_name[start - 512 : start - 500] = b"/etc/passwd\0"
    link[start - 512 + 156] = ord("2")
    for forged in (other_name, link, whole[:-1] + b"x"):
        path.write_bytes(forged)
        assert check(output) == 1
        sha256 = file_sha256(path)
        shard = replace(record, sha256=sha256)
        manifest = read_manifest(output)
        found = list(faults(output, replace(manifest, shards=[shard, *manifest.shards[1:]])))
        assert len(found) == 1
        assert "tar" in found[0]


def test_rows_that_are_lost_or_twice_there_are_found(output: Path) -> None:
    rejects = output / "rejects.csv"
    with rejects.open(newline="") as stream:
        rows = list(csv.reader(stream))
    whole = rejects.read_text()

    def found(text: str) -> str:
        rejects.write_text(text)
        tables = read_manifest(output).tables | {rejects.name: file_sha256(rejects)}
        rewrite(output, lambda m: replace(m, tables=tables))
        return " | ".join(faults(output, read_manifest(output)))

    assert found(whole) == ""
    twice = whole.replace(f"\n{rows[2][0]},", f"\n{rows[1][0]},")
    assert f"row {rows[1][0]} stands in 2 places instead of one" in found(twice)
    assert "instead of" in found(whole[: whole.rindex("\n", 0, -1) + 1])
    assert "counts of its reasons" in found(whole.replace("empty:", "full:"))
    assert "cannot be read" in found(whole.replace(f"\n{rows[1][0]},", "\nten,"))
    assert "is beyond the" in found(whole.replace(f"\n{rows[1][0]},", "\n99999,"))


def test_a_foreign_shard_and_a_lost_table_are_found(output: Path) -> None:
    (output / "shard-000099.tar").write_bytes(b"")
    (output / "merged.csv").unlink()
    found = list(faults(output, read_manifest(output)))
    assert [fault.rpartition("/")[2] for fault in found] == [
        "merged.csv is missing",
        "shard-000099.tar is not in the manifest",
    ]


def damage(path: Path, how: str) -> None:
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:1024])
    else:
        for place in np.random.default_rng(0).integers(0, path.stat().st_size, 5).tolist():
            flip(path, place, 3)


@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
@pytest.mark.parametrize("suffixes", [(".tar",), (".index.npz",), (".tar", ".index.npz")])
def test_bad_files_are_made_again(
    made: tuple[Path, Path], output: Path, how: str, suffixes: tuple[str, ...]
) -> None:
    before = contents(output)
    untouched = (output / "shard-000001.tar").stat().st_mtime_ns
    for suffix in suffixes:
        damage(output / f"shard-000000{suffix}", how)
    assert check(output) == 1
    # With shard and index lost, the spellings are in the input alone.
    assert mend(output, *([f"input={made[0]}"] if len(suffixes) == 2 else [])) == 0
    assert contents(output) == before
    assert (output / "shard-000001.tar").stat().st_mtime_ns == untouched


def test_spellings_come_from_the_members_where_the_index_is_lost(output: Path) -> None:
    before = contents(output)
    record = read_manifest(output).shards[0]
    (output / record.index_name).unlink()
    flip(output / record.name, record.blocks[0].members["topology.npz"][0] + 100, 0)
    assert mend(output) == 0
    assert contents(output) == before


def test_lost_spellings_and_tables_ask_for_the_input(
    made: tuple[Path, Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(output)
    for name in ("shard-000000.tar", "shard-000000.index.npz"):
        (output / name).unlink()
    assert mend(output) == 1
    out = capsys.readouterr().out
    assert out.count("its spellings are lost; give input=FILE (it was in.csv)") == 2
    other = made[0].with_name("other.csv")
    other.write_text(made[0].read_text() + "*CC*\n")
    assert mend(output, f"input={other}") == 1
    assert "is not what" in capsys.readouterr().out
    assert mend(output, f"input={made[0]}") == 0
    for name in ("merged.csv", "rejects.csv"):
        (output / name).unlink()
    capsys.readouterr()
    assert mend(output) == 1
    assert capsys.readouterr().out.count("give input=FILE") == 2
    assert mend(output, f"input={made[0]}") == 0
    assert contents(output) == before


def test_what_cannot_be_mended_stops_nothing_else(
    made: tuple[Path, Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(output)
    lost = ["shard-000000.tar", "shard-000000.index.npz", "rejects.csv"]
    for name in (*lost, "shard-000001.tar"):
        (output / name).unlink()
    assert mend(output, f"input={made[0]}") == 1
    out = capsys.readouterr().out
    assert "the spellings of shard 0 and rejects.csv are lost" in out
    assert "shard-000001.tar: made again" in out
    assert contents(output) == {k: v for k, v in before.items() if k not in lost}


def test_a_shard_without_polymers_is_mended(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    manifest = read_manifest(made[1])
    names = read_shard_index(made[1], manifest.shards[0]).psmiles
    settings = pipeline.verdict_settings(asdict(manifest))["featurize_block"]
    entries = [
        {"step": "featurize_block", "text": text, "reason": "crashed: x", "settings": settings}
        for text in names
    ]
    verdicts = tmp_path / "told.json"
    verdicts.write_text(json.dumps(entries))
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    monkeypatch.setattr(pipeline, "BLOCKS_PER_SHARD", {"topology": 2, "full": 2})
    assert in_process(made[0], output, f"verdicts={verdicts}") == 0
    assert not read_manifest(output).shards[0].blocks
    before = contents(output)
    assert check(output) == 0
    for suffixes in ([".tar"], [".index.npz"], [".tar", ".index.npz"]):
        for suffix in suffixes:
            damage(output / f"shard-000000{suffix}", "lost")
        assert mend(output) == 0
        assert contents(output) == before


def test_other_software_is_named_and_leaves_the_old_file(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(output)
    record = replace(manifest.shards[0], sha256="0" * 64)  # as another version would have it
    software = manifest.software | {"rdkit": "1"}
    rewrite(output, lambda m: replace(m, software=software, shards=[record, *m.shards[1:]]))
    before = contents(output)
    assert mend(output) == 1
    assert "other software (rdkit 1 there," in capsys.readouterr().out
    assert contents(output) == before


def test_a_damaged_manifest_is_one_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = output / MANIFEST_NAME
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    for command in (check, mend):
        assert command(output) == 1
        message = capsys.readouterr().err
        assert "it was altered" in message
        assert message.count("\n") == 1
    assert run(verify, VerifyConfig, "verify", []) == 2
    assert run(repair.repair, RepairConfig, "repair", []) == 2


def test_the_index_of_blocks_is_the_index_file(output: Path) -> None:
    for record in read_manifest(output).shards:
        blocks = list(decode_shard((output / record.name).read_bytes(), record))
        assert index_blocks(blocks).encode() == (output / record.index_name).read_bytes()
