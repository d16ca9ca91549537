"""Shard folders that a stranger made, with manifests that agree with them.

Members that are no arrays (pickles, bombs, lies about sizes) and records that lead out of their
shard: tests/data/test_members.py. Flipped bits and truncation: tests/data/test_shards.py.
"""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mips_dist.data.files import file_sha256
from mips_dist.data.shards import MANIFEST_NAME, load, read_manifest
from mips_dist.errors import MipsError
from preprocess.verify import shard_faults
from tests.security.commands import pickled, refused, tree
from tests.shard_folder import write_shards


def tar(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(pickled().ljust(member.size, b"\0")))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, **pax: str):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.pax_headers = kind, link, size, pax
    return made


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a member above": lambda: tar(member("../canary", size=512)),
    "an absolute path": lambda: tar(member("/tmp/mips-canary", size=512)),
    "a symbolic link": lambda: tar(member("000000-000.x", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": lambda: tar(member("000000-000.x", tarfile.LNKTYPE, "../../canary")),
    "a device": lambda: tar(member("000000-000.x", tarfile.CHRTYPE)),
    "a name twice": lambda: tar(*[member("000000-000.topology.npz", size=512)] * 2),
    "a path in a PAX header": lambda: tar(member("a", size=512, path="../canary")),
    "a size of 2^60 bytes": lambda: tar(member("a", **{"GNU.sparse.size": str(2**60)})),
    "a pickle": lambda: tar(member("000000-000.pyd", size=512)),
    "many members": lambda: tar(member("a")).rstrip(b"\0").ljust(512, b"\0") * 100_000,
}


def add(folder: Path, data: bytes) -> None:
    """Put members before the end of the shard, and let the manifest agree."""
    manifest = read_manifest(folder)
    path = folder / manifest.shards[0].name
    path.write_bytes(path.read_bytes()[: -2 * tarfile.BLOCKSIZE] + data)
    record = replace(manifest.shards[0], sha256=file_sha256(path), num_bytes=path.stat().st_size)
    (folder / MANIFEST_NAME).write_text(replace(manifest, shards=[record]).to_json())


@pytest.mark.parametrize("name", HOSTILE)
def test_foreign_members_are_never_taken_out_and_are_named(tmp_path: Path, name: str) -> None:
    """Readers go where the manifest says and never look at a tar header; verify looks at all."""
    folder = write_shards(tmp_path / "shards", 20)
    honest = load(folder).psmiles
    add(folder, HOSTILE[name]())
    before = tree(tmp_path)
    assert load(folder).psmiles == honest
    found, _ = shard_faults(folder, read_manifest(folder).shards[0])
    assert any("the end of the tar file" in line for line in found)
    assert tree(tmp_path) == before
    assert not Path("/tmp/mips-canary").exists()


def test_verify_says_it_in_one_line(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", 20)
    for name in ("rejects.csv", "merged.csv"):
        (folder / name).write_text({"r": "row,reason\n", "m": "row,equals\n"}[name[0]])
    sums = {name: file_sha256(folder / name) for name in ("rejects.csv", "merged.csv")}
    manifest = replace(read_manifest(folder), tables=sums)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    add(folder, HOSTILE["a member above"]())
    from tests.security.commands import run

    before = tree(tmp_path)
    done = run(tmp_path, "preprocess", "verify", "output=shards")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        sum("the end of the tar file" in x for x in (done.stdout + done.stderr).splitlines()) == 1
    )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", ["a table elsewhere", "a shard elsewhere", "nested", "a list"])
def test_a_manifest_that_leads_elsewhere(tmp_path: Path, change: str) -> None:
    folder = write_shards(tmp_path / "shards", 20)
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text())
    if change == "a table elsewhere":
        values["tables"] = {"../../../../etc/passwd": "0" * 64}
    if change == "a shard elsewhere":
        values["shards"][0]["name"] = "../../../../etc/passwd"
    text = {"nested": "[" * 100_000, "a list": "[1]"}.get(change, json.dumps(values))
    path.write_text(text)
    with pytest.raises(MipsError, match="cannot be read") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)
    if change == "a table elsewhere":
        assert "cannot be read" in refused(tmp_path, "preprocess", "verify", "output=shards")
