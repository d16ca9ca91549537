"""Polymers per CPU-second of each part of preprocessing, beside RDKit's bare parsing.

One thread, process time, one run. The corpus of MIPS_DATA where it is set, else the polymers of the
glass transition table. Parts are interleaved over rounds and the median is printed, for machines
are noisy. X_per_cpu_s are polymers per CPU-second, X_x_parse is what a polymer costs in multiples
of parsing it. The loader is what pre-training with the topology alone does: from a real shard file
on disk (every array checked) and its index to shuffled, masked, packed batches.

    python scripts/bench_preprocess.py [--json FILE] [--num-polymers N] [--rounds N]
"""

import argparse
import csv
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from rdkit import Chem
from threadpoolctl import threadpool_limits

from mips_dist.chem.bands import describe_bands
from mips_dist.chem.conformer import embed
from mips_dist.chem.descriptors import atom_pair_3d, rdkit_2d
from mips_dist.chem.graph import build_graphs
from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.sample import Sample, featurize
from mips_dist.data.block import stack
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import BLOCK_SIZE, ShardRecord, encode_shard

BATCH = 512  # polymers of a batch of the loader
NUM_LOADED = 4096  # polymers of the shard that it reads, so often in a round
PASSES = 4
BLOCK = 256  # polymers handed to the batched parts at once, as in preprocessing
REFERENCE_GRAPHS_PER_CPU_S = 161  # the published code, on 20 atoms and without canonical spelling


def corpus(num_polymers: int) -> list[str]:
    """Return P-SMILES to measure on."""
    folder = os.environ.get("MIPS_DATA")
    if folder:
        path = Path(folder) / "corpus" / "pl1m_like.csv.gz"
        with gzip.open(path, "rt", newline="") as file:
            return [row["psmiles"] for row in islice(csv.DictReader(file), num_polymers)]
    path = Path(__file__).resolve().parent.parent / "examples" / "glass_transition.csv"
    with path.open(newline="") as file:
        texts = [row["psmiles"] for row in csv.DictReader(file)]
    return (texts * (num_polymers // len(texts) + 1))[:num_polymers]


def graphs(texts: list[str]) -> None:
    """Canonical spelling, graph, backbone, pairs within two hops."""
    for start in range(0, len(texts), BLOCK):
        build_graphs([canonicalize(text) for text in texts[start : start + BLOCK]])


def conformers(mols: list[Chem.Mol]) -> None:
    """Conformer and its 3D fingerprint."""
    for mol in mols:
        conformer = embed(mol)
        if conformer is not None:
            atom_pair_3d(mol, conformer)


def everything(texts: list[str]) -> None:
    """All that a shard of content=full holds."""
    for start in range(0, len(texts), BLOCK):
        featurize([canonicalize(text) for text in texts[start : start + BLOCK]])


def write_shard(folder: Path, texts: list[str]) -> ShardRecord:
    """Write a shard of content=topology and its index."""
    canonicals = list(dict.fromkeys(canonicalize(text) for text in texts))
    blocks = []
    for start in range(0, len(canonicals), BLOCK_SIZE):
        graphs = build_graphs(canonicals[start : start + BLOCK_SIZE])
        samples = [Sample(graph) for graph in graphs]
        blocks.append(stack(samples, range(start, start + len(samples))))
    data, index, record = encode_shard(0, blocks)
    (folder / record.name).write_bytes(data)
    (folder / record.index_name).write_bytes(index)
    return record


def load_batches(folder: Path, record: ShardRecord) -> None:
    """Read a shard and make every polymer of it part of one masked, packed batch."""
    loader = MaskedAtomLoader(
        ShardReader(folder, [record], groups=[]),
        seed=0,
        global_batch_size=min(BATCH, record.num_samples),
        held_out_fraction=0.0,
    )
    for step in range(-(-record.num_samples // loader.global_batch_size)):
        loader.micro_batches(step)


def main() -> int:
    """Measure, print, and write the JSON file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--num-polymers", type=int, default=1024, help="for parsing and graphs")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.num_polymers < 8 or arguments.rounds < 1:
        parser.error("needs at least 8 polymers and 1 round")
    torch.set_num_threads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))
    return 0


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure every part and report."""
    texts = corpus(arguments.num_polymers)
    mols = [Chem.MolFromSmiles(canonicalize(text)) for text in texts]
    heavy = statistics.mean(mol.GetNumAtoms() - 2 for mol in mols)
    # Slower parts see fewer polymers; each is a multiple of parsing those same polymers.
    few, fewest = len(texts) // 2, len(texts) // 8
    made = build_graphs([canonicalize(text) for text in texts[:few]])
    parts: dict[str, tuple[Callable[[], object], int]] = {
        "graph": (lambda: graphs(texts), len(texts)),
        "descriptors": (lambda: rdkit_2d([Chem.Mol(m) for m in mols[:few]]), few),
        "bands": (lambda: describe_bands(made[:few]), few),
        "conformer": (lambda: conformers(mols[:fewest]), fewest),
        "all": (lambda: everything(texts[:fewest]), fewest),
    }
    record = write_shard(folder, corpus(max(arguments.num_polymers, NUM_LOADED)))
    num_loaded = record.num_samples
    rdkit_2d(mols[:8])  # imports and tables
    parsing: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in parts}
    ratios: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(arguments.rounds):
        for name, (work, count) in parts.items():
            parse_s = cpu_seconds(lambda n=count: [Chem.MolFromSmiles(t) for t in texts[:n]])
            work_s = cpu_seconds(work)
            parsing.append(parse_s / count)
            costs[name].append(work_s / count)
            ratios[name].append(work_s / parse_s)
        # Far cheaper than parsing, so it sees more polymers than that.
        passes_s = cpu_seconds(lambda: [load_batches(folder, record) for _ in range(PASSES)])
        loader_s = passes_s / (PASSES * num_loaded)
        costs.setdefault("loader", []).append(loader_s)
        ratios.setdefault("loader", []).append(loader_s / parsing[-1])
    figures = {"parse_per_cpu_s": 1 / statistics.median(parsing)}
    figures |= {f"{name}_per_cpu_s": 1 / statistics.median(costs[name]) for name in costs}
    figures |= {f"{name}_x_parse": statistics.median(ratios[name]) for name in ratios}
    figures["core_hours_per_million"] = 1e6 / figures["all_per_cpu_s"] / 3600
    figures["mean_heavy_atoms"] = heavy
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the process time that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def report(figures: dict[str, float]) -> None:
    """Print the table."""
    print(f"{figures['mean_heavy_atoms']:.1f} heavy atoms a polymer, one thread, CPU time")
    print(f"{'parsing':12s} {figures['parse_per_cpu_s']:8.0f} /s")
    for name in ("graph", "descriptors", "bands", "conformer", "all"):
        rate, ratio = figures[f"{name}_per_cpu_s"], figures[f"{name}_x_parse"]
        print(f"{name:12s} {rate:8.0f} /s  {ratio:7.1f} x parsing")
    rate = figures["loader_per_cpu_s"]
    print(f"{'loader':12s} {rate:8.0f} /s  {figures['loader_x_parse']:7.3f} x parsing")
    print(f"everything: {figures['core_hours_per_million']:.1f} core-hours per million polymers")
    ratio = figures["graph_per_cpu_s"] / REFERENCE_GRAPHS_PER_CPU_S
    print(f"graphs: {ratio:.1f} x the published code's {REFERENCE_GRAPHS_PER_CPU_S} /s")


if __name__ == "__main__":
    sys.exit(main())
