"""The folder that a command works in: a local one as it is, or the copy of one behind a URL.

With a URL the command works in a folder of this machine, below ``MIPS_SCRATCH`` or the system's
temporary one, named by the URL. What is finished goes to the URL as a new state (see
`mips_dist.data.generations`), while the work goes on. Wherever the same command is typed next, the
copy is first made equal to the newest state.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from mips_dist.data.files import write_atomically
from mips_dist.data.generations import (
    STATE,
    Changed,
    Damaged,
    Entry,
    Generation,
    History,
    describe,
)
from mips_dist.data.lock import lock_file
from mips_dist.data.remote import HTTP, connect, scheme_of, shown
from mips_dist.data.transfer import Range, address, fetch, listed, send_file
from mips_dist.errors import MipsError, UsageError

_POLL_SECONDS = 0.2
_MAX_CHANGES = 20  # in a row, of files that are being read
_LAST = ("manifest.json", "config.json")  # what others look for comes after what it names


def scratch_dir(url: str) -> Path:
    """Return the folder of this user and machine for what belongs to a URL."""
    root = os.environ.get("MIPS_SCRATCH")
    base = Path(root) if root else Path(tempfile.gettempdir()) / f"mips-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise MipsError(f"{base} is another user's; set MIPS_SCRATCH to a folder of your own")
    return base / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class WorkingCopy:
    """A context; the folder is this process's alone until its end.

    Everything below `path` belongs to the state, but for hidden files, partial ones, and `stays`.

    Parameters
    ----------
    where
        Local folder, or a URL that fsspec can write to (``s3://``).
    stays
        Patterns of paths that are of this machine alone.
    own
        Patterns of paths that never change once they are there; they lie under their own names.

    Attributes
    ----------
    path
        Where to work.
    """

    def __init__(self, where: str, stays: Sequence[str] = (), own: Sequence[str] = ()) -> None:
        self.where = where
        self.is_remote = scheme_of(where) != ""
        self.path = Path(where)
        self.waited = 0.0  # seconds that the work stood still for it
        self.num_commits = self.num_bytes = 0
        if not self.is_remote:
            return
        if scheme_of(where) in HTTP:
            raise UsageError(f"{self} can only be read; give a local folder, or one at s3://")
        connect(where)  # a password in it is refused before anything is done
        self._home = scratch_dir(where)
        self.path = self._home / "folder"
        self._stays, self._own = stays, own
        self._history = History(where)
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._state = Generation(number=0, writer="", files={})
        self._described: dict[str, tuple[tuple[int, int], Entry]] = {}
        self._lock: IO[str] | None = None
        self._thread: threading.Thread | None = None
        self._turn = threading.Condition()
        self._due: float | None = None  # when to commit, on the monotonic clock
        self._is_busy = False
        self._failure: BaseException | None = None

    def __str__(self) -> str:
        """Return how lines name it."""
        return shown(self.where)

    def named(self, path: Path) -> str:
        """Return how others name something in the folder."""
        if not self.is_remote:
            return str(path)
        return shown(address(self.where, path.relative_to(self.path).as_posix()))

    # ---- the beginning

    def __enter__(self) -> Self:
        """Keep other processes of this machine out, and make the copy equal to the newest state.

        Work that this machine did after that state is kept.

        Raises
        ------
        MipsError
            Another process is at work here, or no state can be had.
        """
        if self.is_remote:
            print(f"{self}: working in {self.path}", flush=True)
            self._home.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._pull(self._history.newest())
        return self

    def follow(self, number: int) -> None:
        """Have the state of a number, written by a process of another host, to read from."""
        if self.is_remote and number and self._marked() != self._history.read(number).digest:
            self._home.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._pull(number)
            self._drop_lock()

    def _take_lock(self) -> None:
        self._lock = lock_file(self._home / "lock", f"{self} on this machine", "working on")

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _pull(self, newest: int) -> None:
        """Make the copy equal to the newest state that is whole."""
        self._number = newest
        for number in range(newest, max(0, newest - 2), -1):
            try:
                self._receive(self._history.read(number))
                return
            except Damaged as error:
                reason = error
                if number == max(1, newest - 1):
                    break
                print(f"{self}: state {number} is damaged ({reason}); trying the one before")
        if newest:
            raise MipsError(
                f"{reason}; no state of {self} is complete: restore it from a copy, or remove "
                "all below that address to begin again"
            )
        # A store may show the folder itself among what is in it.
        own = {STATE, self.where.rstrip("/").rpartition("/")[2]}
        if foreign := sorted(set(listed(self.where, ".+")) - own):
            raise MipsError(
                f"{self} holds something else ({foreign[0]}); give an address where nothing is"
            )
        self._mark("")
        shutil.rmtree(self.path, ignore_errors=True)

    def _receive(self, state: Generation) -> None:
        files = state.files
        is_ahead = self._marked() == state.digest
        if is_ahead:
            wanted = {name: e for name, e in files.items() if not (self.path / name).is_file()}
        else:
            self._mark("")
            self._remove_others(files)
            wanted = {name: e for name, e in files.items() if not self._is_here(name, e)}
        self._history.receive(self.path, wanted)
        self._mark(state.digest)
        self._state = state

    def _is_here(self, name: str, entry: Entry) -> bool:
        path = self.path / name
        if not path.is_file() or path.stat().st_size != entry.size:
            return False
        return describe(path, entry.size, entry.is_own) == entry

    def _remove_others(self, files: dict[str, Entry]) -> None:
        for name in self._scan():
            if name not in files:
                (self.path / name).unlink()
        for folder, _, _ in os.walk(self.path, topdown=False):
            if folder != str(self.path) and not os.listdir(folder):
                os.rmdir(folder)

    def _marked(self) -> str:
        """Return the digest of the state that the copy was equal to, before the work after it."""
        try:
            return str(json.loads((self._home / "state.json").read_text())["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _mark(self, digest: str) -> None:
        text = json.dumps({"url": shown(self.where), "digest": digest})
        write_atomically(self._home / "state.json", text)

    def take(self, folder: Path, files: dict[str, Entry]) -> None:
        """Put what `hand_in` has brought to the URL into a folder of the copy."""
        self._history.receive(folder, files)

    # ---- the work

    def push(self, within: float = 0.0) -> None:
        """Ask for a new state of what is in the folder, at the latest after so many seconds.

        Returns at once; several calls may end in one state.

        Raises
        ------
        MipsError
            An earlier one could not be written.
        """
        if not self.is_remote:
            return
        self._raise_failure()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        with self._turn:
            due = time.monotonic() + within
            self._due = due if self._due is None else min(self._due, due)
            self._turn.notify_all()

    def settle(self) -> int:
        """Wait until all that was asked for is written; return the number of the newest state.

        Raises
        ------
        MipsError
            It could not be written.
        """
        if not self.is_remote:
            return 0
        began = time.monotonic()
        with self._turn:
            while (self._due is not None or self._is_busy) and self._failure is None:
                if self._due is not None:
                    self._due = min(self._due, time.monotonic())
                    self._turn.notify_all()
                self._turn.wait()
        self.waited += time.monotonic() - began
        self._raise_failure()
        return self._state.number

    def finish(self, unpublished: Sequence[str] = ()) -> None:
        """Write the last state, with copies of its files under their own names.

        Parameters
        ----------
        unpublished
            Patterns of paths that nobody else reads.
        """
        if not self.is_remote:
            return
        self.push()
        self.settle()
        state = self._state
        wanted = [
            name
            for name, entry in state.files.items()
            if not entry.is_own and not _matches(name, unpublished)
        ]
        todo = [name for name in wanted if name not in state.published]
        for name in sorted(todo, key=lambda name: name.rpartition("/")[2] in _LAST):
            send_file(self.where, name, self.path / name)
        if todo:
            self._commit(state.files, wanted)
        print(
            f"{self}: state {self._state.number}, {len(state.files)} files; "
            f"{self.num_commits} states and {self.num_bytes / 1e6:.1f} MB written, "
            f"{self.waited:.1f} s waited for them",
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was asked for, as far as that is possible after an error."""
        if not self.is_remote:
            return
        try:
            self.settle()
        except MipsError:
            if error is None:
                raise
        finally:
            self._drop_lock()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        """Commit whenever it is due, until something cannot be written."""
        while self._failure is None:
            with self._turn:
                while self._due is None or self._due > time.monotonic():
                    self._turn.wait(None if self._due is None else self._due - time.monotonic())
                self._due, self._is_busy = None, True
            try:
                self._commit_folder()
            except BaseException as error:
                self._failure = error
            with self._turn:
                self._is_busy = False
                self._turn.notify_all()

    def _commit_folder(self) -> None:
        """Commit what is in the folder; files may come, grow and go meanwhile."""
        for _ in range(_MAX_CHANGES):
            try:
                files = self._describe()
                new = {n: e for n, e in files.items() if self._state.files.get(n) != e}
                # Parts of the state before stay until the one after this.
                self.num_bytes += self._history.send(self.path, new, self._state.parts())
                break
            except Changed:
                time.sleep(_POLL_SECONDS)
        else:
            raise MipsError(f"files in {self.path} change all the time; is another program at it?")
        if files != self._state.files:
            known = self._state.published
            self._commit(files, [n for n in known if files.get(n) == self._state.files[n]])

    def _commit(self, files: dict[str, Entry], published: list[str]) -> None:
        state = Generation(
            number=self._number + 1, writer=self._writer, files=files, published=published
        )
        self._history.commit(state)
        self._number, self._state = state.number, state
        self.num_commits += 1
        self._mark(state.digest)

    def _describe(self) -> dict[str, Entry]:
        found = self._scan()
        described = {}
        for name, stamp in found.items():
            known = self._described.get(name)
            if known is None or known[0] != stamp:
                entry = describe(self.path / name, stamp[0], _matches(name, self._own))
                known = stamp, entry
            described[name] = known
        self._described = described
        return {name: entry for name, (_, entry) in described.items()}

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every file of the state, by path in the folder."""
        found = {}
        for folder, inner, names in os.walk(self.path):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for file in names:
                path = Path(folder, file)
                name = path.relative_to(self.path).as_posix()
                is_partial = file.startswith(".") or file.endswith(".partial")
                if is_partial or _matches(name, self._stays) or path.is_symlink():
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                found[name] = status.st_size, status.st_mtime_ns
        return dict(sorted(found.items()))


def hand_in(url: str, folder: Path) -> dict[str, Entry]:
    """Bring the files of a folder to the URL that a process of another host works for.

    They belong to no state before that process has taken them into one; return what it needs to
    `WorkingCopy.take` them.
    """
    files = {
        path.relative_to(folder).as_posix(): describe(path, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    History(url).send(folder, files, set())
    return files


def fetched_file(url: str) -> Path:
    """Return a copy of a file behind a URL, on this machine."""
    parts = urlsplit(url)
    parent, _, name = parts.path.rpartition("/")
    home = scratch_dir(url)
    home.mkdir(parents=True, exist_ok=True)
    (data,) = fetch(parts._replace(path=parent).geturl(), [Range(name)])
    write_atomically(home / name, data)
    return home / name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
