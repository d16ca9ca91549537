"""Bytes of remote files on this machine's disk, the least recently used removed first. No torch."""

import os
import tempfile
import threading
from pathlib import Path

from mips_dist.errors import MipsError


class ByteCache:
    """Pieces of bytes by name in a folder of bounded size; several processes may share it.

    A name must stand for its bytes for ever. A piece is there whole or not at all; what reads it
    checks it, as disks and people alter files.

    Parameters
    ----------
    folder
        Made when the first piece comes.
    max_bytes
        Of all pieces together. Each further process may exceed it by a twentieth.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._room = 0  # to be written before the folder is looked through again
        self._lock = threading.Lock()

    def get(self, name: str, num_bytes: int) -> bytes | None:
        """Return a piece of a known size, if it is there; it counts as used now."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if len(data) == num_bytes else None

    def put(self, name: str, data: bytes) -> None:
        """Keep a piece, in the place of the least recently used ones if there is no room.

        Raises
        ------
        MipsError
            The disk is full or the folder cannot be written to.
        """
        if len(data) > self.max_bytes:
            return
        try:
            with self._lock:
                self.folder.mkdir(parents=True, exist_ok=True)
                if len(data) > self._room:
                    self._room = self._make_room(len(data))
                self._room -= len(data)
            # Not `files.replacing`: two ranks may write one piece at once, and nothing is lost
            # with a cache, so that it need not wait for the disk.
            descriptor, partial = tempfile.mkstemp(prefix=".", dir=self.folder)
            try:
                with open(descriptor, "wb") as stream:
                    stream.write(data)
                os.replace(partial, self.folder / name)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
        except FileNotFoundError:  # another process took the folder or the file to make room
            return
        except OSError as error:
            raise MipsError(
                f"shards cannot be cached in {self.folder} ({error}); make room, or set cache_gb=0"
            ) from error

    def drop(self, name: str) -> None:
        """Forget a piece."""
        (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> int:
        """Remove what was not used for longest; return how much may be written until next time."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:  # by another process
                    continue
                files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        step = self.max_bytes // 20
        if total + num_bytes > self.max_bytes:
            for _, size, path in sorted(files):
                if total + max(num_bytes, step) <= self.max_bytes:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size
        return max(num_bytes, min(self.max_bytes - total, step))
