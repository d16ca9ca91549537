"""Predictions of the polymers met so far, on disk: memory stays the same however many there are."""

import json
import sqlite3

from mips_dist.errors import MipsError

Cells = list[str | float | bool | None]

_CACHE_KIB = 8192


class KnownPolymers:
    """Canonical P-SMILES -> first row and cells, in a temporary file that has no name.

    The system deletes it when it is closed, or when the process ends in any way.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in (f"cache_size=-{_CACHE_KIB}", "journal_mode=OFF", "synchronous=OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE known (canonical TEXT PRIMARY KEY, row INTEGER, cells TEXT) WITHOUT ROWID"
        )

    def get(self, canonical: str) -> tuple[int, Cells] | None:
        """Return the first row of a polymer and its cells; None where it was not met."""
        query = "SELECT row, cells FROM known WHERE canonical = ?"
        found = self._database.execute(query, (canonical,)).fetchone()
        return None if found is None else (found[0], json.loads(found[1]))

    def add(self, canonical: str, row: int, cells: Cells) -> None:
        """Keep a polymer that was not met before; floats come back bit for bit.

        Raises
        ------
        MipsError
            The disk is full.
        """
        values = canonical, row, json.dumps(cells)
        try:
            self._database.execute("INSERT INTO known VALUES (?, ?, ?)", values)
        except sqlite3.OperationalError as error:
            raise MipsError(
                f"what was predicted cannot be kept in a temporary file ({error}); free space in "
                "the temporary folder, or name another one in SQLITE_TMPDIR"
            ) from error

    def close(self) -> None:
        """Delete the file."""
        self._database.close()
