"""Cost of preprocessing as the input grows: the real command, in fresh folders, run by run.

CPU time of driver and actors is given as a multiple of RDKit's bare parsing of the same polymers,
which is measured before and after every run, for machines are noisy. Wall time and the speed-up of
more actors mean something on an idle machine only. The corpus of MIPS_DATA where it is set, else
the polymers of the glass transition table over and over, most of which are merged.

    python scripts/bench_scale.py [--sizes N ...] [--actors N ...] [--content topology|full]
                                  [--folder DIR] [--json FILE]
"""

import argparse
import csv
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase

_PARSED = 2000  # polymers of one measurement of parsing
_COLUMNS = ("rows", "actors", "wall s", "rows/s", "actor CPU s", "driver CPU s", "driver s/1M")
_COLUMNS += ("x parsing", "driver MB", "actor MB", "B/polymer", "B/character")


def corpus() -> Iterator[str]:
    """Yield P-SMILES without end."""
    if folder := os.environ.get("MIPS_DATA"):
        with gzip.open(Path(folder) / "corpus" / "pl1m_like.csv.gz", "rt", newline="") as file:
            yield from (row["psmiles"] for row in csv.DictReader(file))
    path = Path(__file__).resolve().parent.parent / "examples" / "glass_transition.csv"
    with path.open(newline="") as file:
        yield from cycle([row["psmiles"] for row in csv.DictReader(file)])


def parse_seconds(texts: list[str]) -> float:
    """Return the CPU seconds of bare parsing of a polymer."""
    start = time.process_time()
    for text in texts:
        Chem.MolFromSmiles(text)
    return (time.process_time() - start) / len(texts)


def measure(source: Path, size: int, actors: int, content: str, folder: Path) -> dict[str, Any]:
    """Run the command once and return its figures."""
    with source.open(encoding="utf-8") as file:
        texts = [line.strip() for line in islice(file, 1, 1 + size)]
    step = max(1, size // _PARSED)
    sample = texts[::step]
    num_characters = sum(map(len, texts))
    del texts
    output = folder / f"{size}-{actors}"
    command = [sys.executable, "-m", "preprocess", f"input={source}", f"output={output}"]
    before = parse_seconds(sample)
    start = time.monotonic()
    subprocess.run([*command, f"content={content}", f"num_actors={actors}"], check=True)
    wall = time.monotonic() - start
    parsing = statistics.mean([before, parse_seconds(sample)])
    [entry] = json.loads((output / "log.json").read_text(encoding="utf-8"))["runs"]
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    shares = entry["actors"].values()
    actor_cpu = sum(share["cpu_seconds"] for share in shares)
    driver_cpu = entry["driver"]["cpu_seconds"]
    num_bytes = sum(path.stat().st_size for path in output.glob("shard-*"))
    shutil.rmtree(output)
    figures = {
        "rows": size,
        "actors": actors,
        "wall s": wall,
        "rows/s": size / wall,
        "actor CPU s": actor_cpu,
        "driver CPU s": driver_cpu,
        "driver s/1M": driver_cpu / size * 1e6,
        "x parsing": (actor_cpu + driver_cpu) / size / parsing,
        "driver MB": entry["driver"]["max_rss_bytes"] / 1e6,
        "actor MB": max(share["max_rss_bytes"] for share in shares) / 1e6,
        "B/polymer": num_bytes / max(1, manifest["num_samples"]),
        "B/character": num_bytes / num_characters,
    }
    assert tuple(figures) == _COLUMNS
    return figures


def main() -> int:
    """Measure, print, and write the JSON file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--content", choices=["topology", "full"], default="topology")
    parser.add_argument("--folder", type=Path, help="where there is room; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rdBase.DisableLog("rdApp.*")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in arguments.sizes:
            source = Path(folder) / f"{size}.csv"
            with source.open("w", encoding="utf-8") as file:
                file.write("psmiles\n")
                file.writelines(f"{text}\n" for text in islice(corpus(), size))
            for actors in arguments.actors:
                runs.append(measure(source, size, actors, arguments.content, Path(folder)))
            source.unlink()
    report(runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


def report(runs: list[dict[str, Any]]) -> None:
    """Print the table, and what the laws of scale are about."""
    print("  ".join(_COLUMNS))
    for run in runs:
        cells = (f"{run[name]:,.{0 if run[name] >= 100 else 1}f}" for name in _COLUMNS)
        print(
            "  ".join(f"{cell:>{len(name)}s}" for name, cell in zip(_COLUMNS, cells, strict=True))
        )
    costs = [run["x parsing"] for run in runs]
    print(f"cost per polymer: largest {max(costs) / min(costs) - 1:.0%} above smallest")
    walls = {(run["rows"], run["actors"]): run["wall s"] for run in runs}
    for (size, actors), wall in walls.items():
        if actors > 1 and (size, 1) in walls:
            print(f"{size:,} rows: {actors} actors {walls[size, 1] / wall:.2f} x as fast as one")


if __name__ == "__main__":
    sys.exit(main())
