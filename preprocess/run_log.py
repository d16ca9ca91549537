"""``log.json``: who did how much at what cost, run after run. No part of the data set's bytes."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mips_dist.data.files import write_atomically
from preprocess.memory import peak_memory
from preprocess.pool import Share
from preprocess.preflight import gigabytes
from preprocess.progress import duration

LOG_NAME = "log.json"
_MAX_ACTORS_PRINTED = 16


class RunLog:
    """What one run of the command costs; `write` adds it to the runs before it.

    Parameters
    ----------
    path
        The output folder.
    num_rows
        Rows of the input.
    parse_seconds
        CPU seconds of bare parsing of a row, the yardstick of all costs.
    """

    def __init__(self, path: Path, num_rows: int, parse_seconds: float) -> None:
        self._path = path / LOG_NAME
        self._num_rows = num_rows
        self._parse_seconds = parse_seconds
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._wall = time.monotonic()
        self._cpu = time.process_time()
        self._entry: dict[str, Any] = {}

    def write(self, ledger: Mapping[str, Share], num_deaths: int, is_finished: bool) -> None:
        """Keep the costs of this run, whether it came to its end or not.

        Parameters
        ----------
        ledger
            Actor id -> what it did; rows are those of the first pass and polymers of the second.
        num_deaths
            Actors that died.
        is_finished
            Whether the data set is complete.
        """
        self._entry = {
            "started": self._started,
            "is_finished": is_finished,
            "wall_seconds": round(time.monotonic() - self._wall, 3),
            "num_rows": self._num_rows,
            "parse_seconds_per_row": self._parse_seconds,
            "driver": {
                "cpu_seconds": round(time.process_time() - self._cpu, 3),
                "max_rss_bytes": peak_memory(),
            },
            "num_deaths": num_deaths,
            "actors": {actor: asdict(share) for actor, share in ledger.items()},
        }
        try:
            runs = json.loads(self._path.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError):
            runs = []
        text = json.dumps({"runs": [*runs, self._entry]}, indent=1)
        write_atomically(self._path, text + "\n")

    def lines(self) -> list[str]:
        """Return the lines of the summary, of what was written."""
        driver, actors = self._entry["driver"], self._entry["actors"]
        cpu_seconds = driver["cpu_seconds"] + sum(a["cpu_seconds"] for a in actors.values())
        ratio = cpu_seconds / (self._num_rows * self._parse_seconds)
        lines = [
            f"  cost      {duration(cpu_seconds)} of CPU time, {ratio:.1f} x parsing all rows",
            f"  driver    {duration(driver['cpu_seconds'])} of CPU time, peak memory "
            f"{gigabytes(driver['max_rss_bytes'])}",
        ]
        for actor, share in list(actors.items())[:_MAX_ACTORS_PRINTED]:
            lines.append(
                f"  actor     {actor[:8]} on node {share['node'][:8]}: {share['tasks']:,} tasks, "
                f"{share['rows']:,} rows, {duration(share['cpu_seconds'])} of CPU time, peak "
                f"memory {gigabytes(share['max_rss_bytes'])}"
            )
        if len(actors) > _MAX_ACTORS_PRINTED:
            lines.append(f"  and {len(actors) - _MAX_ACTORS_PRINTED} more actors ({LOG_NAME})")
        if self._entry["num_deaths"]:
            lines.append(f"  {self._entry['num_deaths']} actors died; others did their work")
        return lines
