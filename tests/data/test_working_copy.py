"""States behind a URL are there whole or not at all, whoever writes, fails or reads."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mips_dist.data import transfer
from mips_dist.data.generations import PART_BYTES, Generation, describe
from mips_dist.data.working_copy import WorkingCopy, fetched_file, hand_in
from mips_dist.errors import MipsError, UsageError
from tests.preprocess.servers import Fault, s3_file_system, s3_proxy

pytest.importorskip("moto")
pytest.importorskip("s3fs")

URL = "s3://bucket/run"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_file_system() as system:
        system.mkdir("bucket")
        yield system


@pytest.fixture
def s3(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / "here"))
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.01, 0.02, 0.04, 0.08))
    server.invalidate_cache()
    if server.exists("bucket/run"):
        server.rm("bucket/run", recursive=True)
    return server


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "there") -> None:
    monkeypatch.setenv("MIPS_SCRATCH", str(tmp_path / name))


def write(copy: WorkingCopy, files: dict[str, bytes]) -> int:
    """Write files and commit them; return the number of the state."""
    for name, data in files.items():
        (copy.path / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.path / name).write_bytes(data)
    copy.push()
    return copy.settle()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def objects(system: Any) -> list[str]:
    system.invalidate_cache()
    return [name.removeprefix("bucket/run/") for name in system.find("bucket/run")]


def test_a_local_folder_is_worked_in_as_it_is(tmp_path: Path) -> None:
    with WorkingCopy(str(tmp_path / "run")) as copy:
        assert copy.path == tmp_path / "run"
        assert write(copy, {"a": b"1"}) == 0
        copy.finish()
    assert files_in(tmp_path) == {"run/a": b"1"}


def test_what_is_pushed_is_there_on_an_empty_disk(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = random.Random(0).randbytes(2 * PART_BYTES + 5)
    kept = {"a/b.bin": large, "empty": b"", "log": b"one\n", "x.tar": large[::-1]}
    with WorkingCopy(URL, stays=("cache/*",), own=("*.tar",)) as copy:
        assert write(copy, {**kept, "cache/c": b"c", ".lock": b"", "d.partial": b"d"}) == 1
        assert copy.settle() == 1  # nothing new, no new state
        copy.push()
        assert copy.settle() == 1
        # A file that grows, one that goes, and one that comes.
        (copy.path / "empty").unlink()
        assert write(copy, {"log": b"one\ntwo\n", "new": b"n"}) == 2
    del kept["empty"]
    kept |= {"log": b"one\ntwo\n", "new": b"n"}
    elsewhere(monkeypatch, tmp_path)
    with WorkingCopy(URL, own=("*.tar",)) as copy:
        assert files_in(copy.path) == kept
        assert "x.tar" in objects(s3)
        assert "new" not in objects(s3)
        copy.finish(unpublished=("a/*",))
        assert {"x.tar", "log", "new"} <= set(objects(s3))
        assert "a/b.bin" not in objects(s3)
        before = objects(s3)
        copy.finish(unpublished=("a/*",))
        assert objects(s3) == before
    assert fetched_file(f"{URL}/log").read_bytes() == kept["log"]
    # Nothing piles up: of many states there are the first one's name and two others, with parts.
    with WorkingCopy(URL, own=("*.tar",)) as copy:
        for number in range(8):
            write(copy, {"log": b"%d" % number})
    names = [name for name in objects(s3) if name.startswith(".state")]
    assert [name for name in names if name.endswith(".json")] == [
        f".state/{number:08d}.json" for number in (1, 10, 11)
    ]
    assert sum(name.startswith(".state/parts/") for name in names) == 6  # 3 of a, 2 of log, new


def test_work_after_the_newest_state_is_kept_here_and_replaced_where_it_is_old(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkingCopy(URL) as copy:
        write(copy, {"a": b"1", "step/x": b"x"})
        (copy.path / "ahead").write_bytes(b"2")
    with WorkingCopy(URL) as copy:
        assert files_in(copy.path) == {"a": b"1", "step/x": b"x", "ahead": b"2"}
    elsewhere(monkeypatch, tmp_path)
    with WorkingCopy(URL) as copy:
        (copy.path / "step" / "x").unlink()
        write(copy, {"a": b"3"})
    elsewhere(monkeypatch, tmp_path, "here")
    with WorkingCopy(URL) as copy:
        assert files_in(copy.path) == {"a": b"3"}
        assert not (copy.path / "step").exists()
        assert write(copy, {"a": b"4"}) == 3
    s3.rm("bucket/run", recursive=True)
    with WorkingCopy(URL) as copy:  # removed by its owner: begun again
        assert not copy.path.exists()


def test_of_two_writers_the_second_gets_one_line(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = WorkingCopy(URL).__enter__()
    write(first, {"a": b"1"})
    elsewhere(monkeypatch, tmp_path)
    second = WorkingCopy(URL).__enter__()
    assert write(first, {"a": b"2"}) == 2
    with pytest.raises(MipsError, match="another process is writing to s3://bucket/run") as caught:
        write(second, {"a": b"3"})
    assert "\n" not in str(caught.value)
    assert write(first, {"a": b"4"}) == 3
    monkeypatch.setattr("mips_dist.data.lock.LOCK_SECONDS", 0.2)
    elsewhere(monkeypatch, tmp_path, "here")
    with pytest.raises(MipsError, match=r"is working on .* on this machine"):
        WorkingCopy(URL).__enter__()
    first.__exit__(None, None, None)
    with WorkingCopy(URL) as copy:
        assert files_in(copy.path) == {"a": b"4"}


@pytest.mark.parametrize("how", ["part lost", "part altered", "state altered"])
def test_a_damaged_state_gives_way_to_the_one_before(
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    with WorkingCopy(URL) as copy:
        for data in (b"old", b"new"):
            write(copy, {"a": data})
            entry = describe(copy.path / "a", 3)

    def harm(number: int, part: str) -> None:
        name = f"bucket/run/.state/parts/{part}"
        if how == "state altered":
            name = f"bucket/run/.state/{number:08d}.json"
        if how == "part lost":
            s3.rm_file(name)
        else:
            data = bytearray(s3.cat_file(name))
            data[-3] ^= 1
            s3.pipe_file(name, bytes(data))

    harm(2, entry.parts[0])
    elsewhere(monkeypatch, tmp_path)
    with WorkingCopy(URL) as copy:
        assert files_in(copy.path) == {"a": b"old"}
        assert "state 2 is damaged" in capsys.readouterr().out
        assert write(copy, {"a": b"third"}) == 3  # number 2 is taken for good
    entry = describe(copy.path / "a", 5)
    harm(3, entry.parts[0])
    elsewhere(monkeypatch, tmp_path, "third")
    with pytest.raises(MipsError, match=r"no state of s3://bucket/run is complete") as caught:
        WorkingCopy(URL).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", ".state/x", "a//b"])
def test_a_hostile_state_writes_nothing_outside(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with WorkingCopy(URL) as copy:
        write(copy, {"a": b"1"})
        entry = describe(copy.path / "a", 1)
    state = Generation(number=1, writer="", files={name: entry})
    s3.pipe_file("bucket/run/.state/00000001.json", state.to_json())
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(MipsError, match="a file is named"):
        WorkingCopy(URL).__enter__()
    assert not [p for p in files_in(tmp_path / "there") if not p.endswith("lock")]


def test_a_server_that_fails_now_and_then_is_ridden_out(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(0)
    faults: list[Fault] = [None, None, 500, 503, "cut", "unanswered"]
    with s3_proxy(lambda method, path: chance.choice(faults)) as failures:
        with WorkingCopy(URL, own=("*.tar",)) as copy:
            for number in range(5):
                write(copy, {"a": b"%d" % number, "b.tar": b"b" * 10_000})
            copy.finish()
        elsewhere(monkeypatch, tmp_path)
        with WorkingCopy(URL, own=("*.tar",)) as copy:
            assert files_in(copy.path) == {"a": b"4", "b.tar": b"b" * 10_000}
    assert len(failures) > 10
    assert {"cut", "unanswered", 500, 503} == set(failures)


def test_a_server_that_is_gone_is_one_line_and_nothing_is_lost(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0,))
    is_gone = False
    with s3_proxy(lambda method, path: 503 if is_gone else None):
        with WorkingCopy(URL) as copy:
            write(copy, {"a": b"1"})
            is_gone = True
            with pytest.raises(MipsError, match=r"s3://bucket/run/\S+ cannot be written") as caught:
                write(copy, {"a": b"2"})
            assert "\n" not in str(caught.value)
            with pytest.raises(MipsError, match="run the same command again"):
                copy.push()
            copy._failure = None
        is_gone = False
        with WorkingCopy(URL) as copy:
            assert files_in(copy.path) == {"a": b"2"}
            copy.push()
            assert copy.settle() == 2


def test_what_another_host_hands_in(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made" / "models").mkdir(parents=True)
    (tmp_path / "made" / "models" / "m").write_bytes(b"model")
    with WorkingCopy(URL) as copy:
        write(copy, {"a": b"1"})
        copy.take(copy.path, hand_in(URL, tmp_path / "made"))
        copy.push()
        assert copy.settle() == 2
    elsewhere(monkeypatch, tmp_path)
    reader = WorkingCopy(URL)
    reader.follow(2)
    assert files_in(reader.path) == {"a": b"1", "models/m": b"model"}


def test_what_cannot_be_written_to(s3: Any) -> None:
    s3.pipe_file("bucket/run/mine.txt", b"somebody's")
    with pytest.raises(MipsError, match=r"run holds something else \(mine.txt\)"):
        WorkingCopy(URL).__enter__()
    with pytest.raises(UsageError, match="can only be read"):
        WorkingCopy("https://host/run")
    with pytest.raises(UsageError, match="was given with a password"):
        WorkingCopy("s3://me:secret@bucket/run")
    with (
        pytest.raises(MipsError, match=r"cannot be written .*bucket does not exist"),
        WorkingCopy("s3://nobody-has-it/run") as copy,
    ):
        write(copy, {"a": b"1"})


def test_no_credential_is_in_a_state(s3: Any) -> None:
    with WorkingCopy(URL) as copy:
        write(copy, {"a": b"1"})
    found = [s3.cat_file(f"bucket/run/{name}") for name in objects(s3)]
    assert not any(word in data for data in found for word in (b"secret", b"somebody"))
