"""States of a folder behind a URL, one after the other: each is there whole or not at all.

``.state/00000012.json`` names every file of state 12 with its size and the sha256 of its parts of
16 MiB; the parts lie in ``.state/parts/`` under their sha256. Files that never change once they are
there lie whole under their own names instead. A state is written last, and only where no file of
its number is: so it exists or not, two writers cannot both write it, and nothing is ever renamed.
A listing only says where to begin to look.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from mips_dist.data.files import flush_to_disk
from mips_dist.data.remote import shown
from mips_dist.data.transfer import (
    TOGETHER,
    Missing,
    Range,
    address,
    create,
    fetch,
    listed,
    remove,
    send,
    send_file,
)
from mips_dist.errors import MipsError

STATE = ".state"
FORMAT = 1
PART_BYTES = 1 << 24
_BATCH_BYTES = 1 << 26  # in memory at a time, on its way
_KEPT = 2  # states
_FIRST = 1  # its name is kept for ever, so that no second history can begin
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Damaged(MipsError):
    """A state cannot be had whole."""


class Changed(Exception):
    """A local file was changed or removed while it was read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of a state: its bytes, the sha256 of each part, and whether it lies under its name."""

    size: int
    parts: list[str]
    is_own: bool = False


class Piece(NamedTuple):
    """A part of a file of a state."""

    name: str
    number: int
    entry: Entry

    @property
    def sha256(self) -> str:
        """Return what it must be."""
        return self.entry.parts[self.number]

    @property
    def start(self) -> int:
        """Return its place in the file."""
        return self.number * PART_BYTES

    @property
    def num_bytes(self) -> int:
        """Return its size."""
        return min(PART_BYTES, self.entry.size - self.start)

    @property
    def is_last(self) -> bool:
        """Whether the file ends with it."""
        return self.number == len(self.entry.parts) - 1

    def place(self) -> Range:
        """Return where it lies."""
        if self.entry.is_own:
            return Range(self.name, self.start, self.num_bytes)
        return Range(_part(self.sha256), None, self.num_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One state.

    Attributes
    ----------
    writer
        Made up by the process that wrote it.
    files
        All of them, by path in the folder.
    published
        Those of which a copy lies under their own names, for others to read.
    """

    number: int
    writer: str
    files: dict[str, Entry]
    published: list[str] = field(default_factory=list)

    def to_json(self) -> bytes:
        """Return the file; its sha256 comes first."""
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps({"sha256": _digest(body), **body}).encode()

    @property
    def digest(self) -> str:
        """Return a name that no other state has."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def parts(self) -> set[str]:
        """Return the parts that it needs."""
        return {p for entry in self.files.values() if not entry.is_own for p in entry.parts}


def describe(path: Path, size: int, is_own: bool = False) -> Entry:
    """Return the entry of a local file, of its first bytes where it is growing.

    Raises
    ------
    Changed
        It is gone or shorter.
    """
    parts = []
    try:
        with path.open("rb") as file:
            for start in range(0, size, PART_BYTES):
                wanted = min(PART_BYTES, size - start)
                data = file.read(wanted)
                if len(data) < wanted:
                    raise Changed
                parts.append(hashlib.sha256(data).hexdigest())
    except FileNotFoundError as error:
        raise Changed from error
    return Entry(size=size, parts=parts, is_own=is_own)


class History:
    """The states of one folder behind a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._standing: set[int] = set()  # numbers whose files may be there
        self._known: dict[int, Generation] = {}

    def newest(self) -> int:
        """Return the number of the newest state, 0 if there is none."""
        names = listed(address(self.url, STATE), r"\d{8}\.json")
        self._standing = {int(name[:8]) for name in names}
        number = max(self._standing, default=0)
        while True:
            try:
                fetch(self.url, [Range(_manifest(number + 1))])
            except Missing:
                return number
            number += 1
            self._standing.add(number)

    def read(self, number: int) -> Generation:
        """Read a state.

        Raises
        ------
        Damaged
            It is not there, or not what was written.
        """
        if number in self._known:
            return self._known[number]
        name = shown(address(self.url, _manifest(number)))
        try:
            values = json.loads(fetch(self.url, [Range(_manifest(number))])[0])
            if values.pop("sha256") != _digest(values):
                raise ValueError("its sha256 is another")
            if values.pop("format") != FORMAT:
                raise MipsError(f"{name} is of another version of mips_dist; use that version")
            entries = {_checked(name): Entry(**entry) for name, entry in values["files"].items()}
            for entry in entries.values():
                _check(entry)
            found = Generation(**{**values, "files": entries})
        except Missing as error:
            raise Damaged(f"{name} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{name} is damaged ({error})") from error
        self._known = {n: g for n, g in self._known.items() if n > number - _KEPT}
        self._known[number] = found
        return found

    def commit(self, generation: Generation) -> None:
        """Make a state the newest one, then drop those that are older than the one before.

        Raises
        ------
        MipsError
            Another process has written one of this number.
        """
        number = generation.number
        if not create(self.url, _manifest(number), generation.to_json()):
            raise MipsError(
                f"another process is writing to {shown(self.url)}; wait for its end or stop it, "
                "and run the same command again"
            )
        self._standing.add(number)
        self._known[number] = generation
        for old in sorted(n for n in self._standing if n <= number - _KEPT):
            self._drop(old, number)

    def _drop(self, old: int, newest: int) -> None:
        """Remove a state, and the parts that no kept one needs."""
        self._standing.discard(old)
        with suppress(MipsError):  # else it stays, and costs its room
            needed = self.read(newest).parts() | self.read(newest - 1).parts()
            parts = self.read(old).parts() - needed
            doomed = [_part(part) for part in sorted(parts)]
            if old != _FIRST:
                doomed.append(_manifest(old))
            if doomed:
                remove(self.url, doomed)
        self._known.pop(old, None)

    # ---- files

    def send(self, folder: Path, files: Mapping[str, Entry], there: set[str]) -> int:
        """Bring local files here but for the parts that are there; return the bytes sent.

        Raises
        ------
        Changed
            A file is no longer what its entry says.
        """
        sent = 0
        for name, entry in files.items():
            if entry.is_own:
                if (folder / name).stat().st_size != entry.size:
                    raise Changed
                send_file(self.url, name, folder / name)
                sent += entry.size
        stored = {name: entry for name, entry in files.items() if not entry.is_own}
        for batch in _batches(p for p in _pieces(stored) if p.sha256 not in there):
            data = {_part(piece.sha256): _read(folder / piece.name, piece) for piece in batch}
            send(self.url, data)
            sent += sum(map(len, data.values()))
            there |= {piece.sha256 for piece in batch}
        return sent

    def receive(self, folder: Path, files: Mapping[str, Entry]) -> None:
        """Bring files of a state into a local folder, each whole or not at all.

        Raises
        ------
        Damaged
            One of them is missing or not what it was.
        """
        for name, entry in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not entry.parts:
                (folder / name).write_bytes(b"")
        file: BinaryIO | None = None
        try:
            for batch in _batches(_pieces(files)):
                try:
                    found = fetch(self.url, [piece.place() for piece in batch])
                except Missing as error:
                    raise Damaged(
                        str(error).partition(";")[0].replace("no file", "lost")
                    ) from error
                for piece, data in zip(batch, found, strict=True):
                    if hashlib.sha256(data).hexdigest() != piece.sha256:
                        where = shown(address(self.url, piece.place().name))
                        raise Damaged(f"{where} is not what was written")
                    path = folder / piece.name
                    partial = path.with_name(f".{path.name}.partial")
                    file = file or partial.open("wb")
                    file.write(data)
                    if piece.is_last:
                        file.close()
                        file = None
                        flush_to_disk(partial)
                        partial.replace(path)
        finally:
            if file is not None:
                file.close()


def _pieces(files: Mapping[str, Entry]) -> Iterator[Piece]:
    for name, entry in files.items():
        for number in range(len(entry.parts)):
            yield Piece(name, number, entry)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Put pieces together that travel at the same time."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and (len(batch) == TOGETHER or size + piece.num_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.num_bytes
    if batch:
        yield batch


def _read(path: Path, piece: Piece) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(piece.start)
            data = file.read(piece.num_bytes)
    except FileNotFoundError as error:
        raise Changed from error
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise Changed
    return data


def _manifest(number: int) -> str:
    return f"{STATE}/{number:08d}.json"


def _part(sha256: str) -> str:
    return f"{STATE}/parts/{sha256}"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _checked(name: str) -> str:
    """Return the name of a file unless it leads out of the folder, or to what is hidden there."""
    path = PurePosixPath(name)
    if path.is_absolute() or str(path) != name or any(p.startswith(".") for p in path.parts):
        raise ValueError(f"a file is named {name[:80]!r}")
    return name


def _check(entry: Entry) -> None:
    num_parts = -(-entry.size // PART_BYTES)
    is_good = entry.size >= 0 and len(entry.parts) == num_parts
    if not is_good or not all(_SHA256.fullmatch(part) for part in entry.parts):
        raise ValueError("an entry contradicts itself")
