"""The journal of verdicts: which texts end the process that works on them, and how.

A verdict may rest on a clock or on the memory of a machine. It is written down before anything is
made of it, so that the same command, a repair or another run (``verdicts=FILE``) repeats it instead
of the wait, and gets the same bytes. To try such texts again, under other limits say, start in a
new folder.
"""

import json
from pathlib import Path
from typing import Any

from mips_dist.data.files import file_sha256, write_atomically
from mips_dist.errors import MipsError
from preprocess.isolation import VERDICT_CODES

_KEYS = {"step", "text", "reason", "settings"}


def journal_digest(path: str) -> str:
    """Return the sha256 of the journal of another run; empty where none is given."""
    try:
        return file_sha256(Path(path)) if path else ""
    except FileNotFoundError:
        raise MipsError(f"no file {path}; check the path of verdicts=") from None


class Journal:
    """The verdicts on the texts of one run, in a file that is there whole after any crash.

    Parameters
    ----------
    path
        The file, ``verdicts.json`` in the output folder. It is made by the first verdict; it lists
        those that were used, sorted.
    settings
        Step -> what decides, beside the text, how the step ends. Verdicts found under other
        settings do not count.
    adopted
        File of another run whose verdicts are taken over where their texts turn up; empty: none.
    """

    def __init__(self, path: Path, settings: dict[str, dict[str, Any]], adopted: str = "") -> None:
        self._path = path
        self._settings = settings
        self._own = self._read(path) if path.is_file() else {}
        self._adopted = self._read(Path(adopted)) if adopted else {}

    def _read(self, path: Path) -> dict[tuple[str, str], str]:
        try:
            entries = json.loads(path.read_bytes())
            if any(entry.keys() != _KEYS for entry in entries):
                raise ValueError("other keys than " + ", ".join(sorted(_KEYS)))
            for reason in (entry["reason"] for entry in entries):
                # It becomes a line of rejects.csv and a key of the manifest.
                if reason.partition(":")[0] not in VERDICT_CODES or not reason.isprintable():
                    raise ValueError(f"a reason is {reason[:60]!r}")
            return {
                (entry["step"], entry["text"]): entry["reason"]
                for entry in entries
                if entry["settings"] == self._settings.get(entry["step"])
            }
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise MipsError(
                f"{path} is no journal of verdicts ({error}); without it each is found anew"
            ) from error

    def find(self, step: str, texts: list[Any]) -> dict[int, str]:
        """Return place -> reason of the texts that a step must leave out."""
        if not self._own and not self._adopted:
            return {}
        found: dict[int, str] = {}
        taken_over = {}
        for place, text in enumerate(texts):
            key = (step, text)
            if key in self._own:
                found[place] = self._own[key]
            elif key in self._adopted:
                found[place] = taken_over[key] = self._adopted[key]
        if taken_over:
            self._own |= taken_over
            self._write()
        return found

    def add(self, step: str, text: str, reason: str) -> None:
        """Write a verdict down, at once; of two on one text the first stands."""
        self._own.setdefault((step, text), reason)
        self._write()

    def _write(self) -> None:
        entries = [
            {"step": step, "text": text, "reason": reason, "settings": self._settings[step]}
            for (step, text), reason in sorted(self._own.items())
        ]
        text = json.dumps(entries, indent=1, sort_keys=True)
        write_atomically(self._path, text.encode() + b"\n")
