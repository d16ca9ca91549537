"""A file is the old one or the new one, and nothing is left beside it."""

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mips_dist.data.files import replacing, table, write_atomically


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "eins\n")
    write_atomically(path, "äöü\n")
    assert path.read_bytes() == "äöü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path, error: BaseException | type[BaseException]) -> None:
    with replacing(path) as stream:
        stream.write(b"half of the ne")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_error_leaves_the_old_file_alone(
    tmp_path: Path, error: BaseException | type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    with pytest.raises((KeyboardInterrupt, OSError)):
        interrupted(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_does_not_stop_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    code = (
        "import os, sys; from pathlib import Path; from mips_dist.data.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'n' * 100_000)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    steps: list[tuple[str, bool]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        steps.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", recorded)
    write_atomically(path, b"x")
    assert steps == [(str(tmp_path / ".a.txt.partial"), False), (str(tmp_path), True)]


def test_a_table_is_whole_or_absent_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [["*CC*", "a,b"], ["*C\udcff*", "ü"]]  # a byte that was no UTF-8

    def write(path: Path, fails: bool = False) -> bytes:
        with table(path, ["psmiles", "note"]) as writer:
            writer.writerows(rows)
            if fails:
                raise KeyboardInterrupt
        return path.read_bytes()

    plain = write(tmp_path / "a.csv")
    assert plain == b'psmiles,note\n*CC*,"a,b"\n*C\xff*,\xc3\xbc\n'
    packed = write(tmp_path / "a.csv.gz")
    assert gzip.decompress(packed) == plain
    assert write(tmp_path / "b.csv.gz") == packed
    for name in ("a.csv.gz", "c.csv"):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / name, fails=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.csv.gz", "b.csv.gz"]
    assert (tmp_path / "a.csv.gz").read_bytes() == packed
