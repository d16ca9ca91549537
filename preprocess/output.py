"""The output folder: what is finished is kept, what is foreign is refused, nothing is half-written.

While a run goes on, ``work/`` holds ``run.json`` (what is being made of what), the verdicts on each
chunk of rows, and the record of each finished shard. The manifest is written last.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mips_dist.data.files import flush_to_disk, write_atomically
from mips_dist.data.shards import MANIFEST_NAME, read_manifest
from mips_dist.data.store import read_file
from mips_dist.errors import MipsError

REJECTS_NAME = "rejects.csv"
MERGED_NAME = "merged.csv"
VERDICTS_NAME = "verdicts.json"  # only where a polymer ended its process
_RUN_NAME = "run.json"
# Behind a URL (see `mips_dist.data.working_copy`): what this machine alone needs, for a block is
# soon part of a shard, and what has the same bytes whoever makes it.
STAYS = ("work/lock", "work/blocks/*", "work/merge/*", "work/first_rows")
OWN = ("*.tar", "*.index.npz")
_IGNORED = {"input": {"name"}}  # the same bytes under another name are the same input


def write_checked(path: Path, values: dict[str, Any]) -> None:
    """Write JSON with its sha256 in the first line.

    No wait for the disk: what a power cut tears apart is found out by its hash and done again.
    """
    body = json.dumps(values, ensure_ascii=False).encode()
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    partial.replace(path)


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read what `write_checked` wrote; None if the file is missing or was altered."""
    if not path.is_file():
        return None
    sha256, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != sha256:
        return None
    values: dict[str, Any] = json.loads(body)
    return values


class OutputFolder:
    """The output folder of one run.

    Parameters
    ----------
    path
        The folder, on this machine; need not exist.
    header
        What decides the contents: the first part of the manifest.
    adopted
        sha256 of the journal whose verdicts are taken over; empty: none. A run that is resumed
        with another one would have them on a part of its rows.
    """

    def __init__(self, path: str | Path, header: dict[str, Any], adopted: str = "") -> None:
        self.path = Path(path)
        self.work = self.path / "work"
        self.header = header
        self._run = header | {"verdicts": adopted}

    def is_finished(self) -> bool:
        """Return whether the folder already holds all that this command would make.

        Raises
        ------
        MipsError
            The folder belongs to another command, to something else, or has lost a file.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise MipsError(f"output {self.path} is no folder; give one that is new or empty")
        if (self.path / MANIFEST_NAME).is_file():
            manifest = read_manifest(self.path)
            self._refuse_other({key: getattr(manifest, key) for key in self.header}, self.header)
            for shard in manifest.shards:
                read_file(self.path / shard.name, shard.num_bytes, None)
                read_file(self.path / shard.index_name, shard.index_num_bytes, None)
            for table in manifest.tables:
                if not (self.path / table).is_file():
                    raise MipsError(
                        f"{self.path / table} is missing; `python -m preprocess repair` may "
                        "rebuild it, or remove the folder and run again"
                    )
            shutil.rmtree(self.work, ignore_errors=True)  # if a crash left it behind
            return True
        run = read_checked(self.work / _RUN_NAME)
        if run is not None:
            self._refuse_other({"verdicts": ""} | run, self._run)
        elif foreign := self._foreign_files():
            raise MipsError(
                f"output folder {self.path} holds something else ({foreign[0]}); "
                "give a folder that is new or empty"
            )
        return False

    def _foreign_files(self) -> list[str]:
        """Return what lies in the folder but was not left by a run that had only just begun."""
        if not self.path.is_dir():
            return []
        ours = {"work", "work/lock", f"work/{_RUN_NAME}", f"work/{_RUN_NAME}.partial"}
        found = [str(file.relative_to(self.path)) for file in self.path.iterdir()]
        if self.work.is_dir():
            found += [str(file.relative_to(self.path)) for file in self.work.iterdir()]
        return sorted(set(found) - ours)

    def _refuse_other(self, found: dict[str, Any], run: dict[str, Any]) -> None:
        for key, wanted in run.items():
            difference = _difference(key, found.get(key), wanted)
            if difference:
                raise MipsError(
                    f"output folder {self.path} belongs to another run: {difference}; "
                    "give another output folder"
                )

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Hold the folder for this run alone; another one that is at work in it is an error."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MipsError(
                    f"another run is at work in {self.path}; wait for it, or stop it"
                ) from error
            if (self.path / MANIFEST_NAME).is_file():
                shutil.rmtree(self.work)
                raise MipsError(
                    f"another run has finished {self.path} meanwhile; nothing is left to do"
                )
            if read_checked(self.work / _RUN_NAME) is None:
                write_checked(self.work / _RUN_NAME, self._run)
                # Without it all that follows would look like something else after a power cut.
                flush_to_disk(self.work / _RUN_NAME)
                flush_to_disk(self.work)
            for name in ("rows", "blocks", "shards"):
                (self.work / name).mkdir(exist_ok=True)
            yield

    def finish(self, manifest: str) -> None:
        """Write the manifest, which makes the folder a data set, and remove the work folder."""
        write_atomically(self.path / MANIFEST_NAME, manifest)
        shutil.rmtree(self.work, ignore_errors=True)  # another command may be at it too


def _difference(key: str, found: Any, wanted: Any) -> str:
    """Name the first difference between two values; empty if there is none."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for inner in wanted:
            if inner in _IGNORED.get(key, ()):
                continue
            if text := _difference(f"{key} {inner}", found.get(inner), wanted[inner]):
                return text
        return ""
    if found == wanted:
        return ""
    found, wanted = ("none" if value == "" else value for value in (found, wanted))
    return f"{key} is {found} there and {wanted} here"
