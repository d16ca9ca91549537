"""Loss of the conformer ladder against converged geometries, beside the noise between seeds.

The yardstick is the careful recipe: hydrogens first, ETKDGv3, MMFF94 until it converges (at most
3,000 steps). Of each polymer it gives one geometry for seed 0 and one for each of two other seeds.
With T the Tanimoto similarity of the 512-bit 3D atom pairs, means over polymers and other seeds:

    noise = 1 - T(careful seed 0, careful other seeds)
    loss  = T(careful seed 0, careful other seeds) - T(ladder seed 0, careful other seeds)

The same for D, the root mean square difference of the distance matrices of heavy atoms (angstrom),
whose noise is its mean and whose loss is what the ladder adds. Standard errors are over polymers,
paired; that of the ratio by the delta method. Cost is CPU time beside the careful recipe's, in turn
with it; scripts/bench_preprocess.py compares with parsing.

    python scripts/conformer_loss.py [--num-polymers 500] [--seed 0] [--steps 0 25 50 100 200]
"""

import argparse
import csv
import gzip
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from threadpoolctl import threadpool_limits

from mips_dist.chem.conformer import Conformer, cap_with_hydrogen, embed
from mips_dist.chem.descriptors import atom_pair_3d
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize

CONVERGED_STEPS = 3000
OTHER_SEEDS = (1, 2)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-polymers", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the sample of polymers")
    parser.add_argument("--steps", type=int, nargs="+", default=[50], help="MMFF94 steps to try")
    arguments = parser.parse_args()
    if arguments.num_polymers < 2:
        parser.error("a standard error needs at least 2 polymers")
    RDLogger.DisableLog("rdApp.*")
    with threadpool_limits(1):
        measure(arguments)
    return 0


def corpus() -> list[str]:
    """Return P-SMILES: the corpus of MIPS_DATA, or the polymers of the glass transition table."""
    folder = os.environ.get("MIPS_DATA")
    if folder:
        with gzip.open(Path(folder) / "corpus" / "pl1m_like.csv.gz", "rt", newline="") as file:
            return [row["psmiles"] for row in csv.DictReader(file)]
    path = Path(__file__).resolve().parent.parent / "examples" / "glass_transition.csv"
    with path.open(newline="") as file:
        return [row["psmiles"] for row in csv.DictReader(file)]


def measure(arguments: argparse.Namespace) -> None:
    """Compare geometries of a random sample of the corpus."""
    texts = corpus()
    random.Random(arguments.seed).shuffle(texts)
    noise: list[tuple[float, float]] = []  # 1 - T and D of each polymer, between careful seeds
    ladders: dict[int, list[tuple[float, float]]] = {steps: [] for steps in arguments.steps}
    cost = dict.fromkeys(arguments.steps, 0.0)
    careful_cost = 0.0
    left_out = 0
    for text in texts:
        if len(noise) == arguments.num_polymers:
            break
        try:
            canonical = canonicalize(text)
        except InvalidPolymer:
            continue
        mol = Chem.MolFromSmiles(canonical)
        start = time.process_time()
        references = [careful(mol, seed) for seed in (0, *OTHER_SEEDS)]
        done = time.process_time()
        if any(reference is None for reference in references):
            left_out += 1  # no parameters, not embedded, or a single heavy atom
            continue
        careful_cost += (done - start) / len(references)
        first, *others = (
            (atom_pair_3d(mol, reference), distances(reference))
            for reference in references
            if reference is not None
        )
        noise.append(difference(first, others))
        for steps in arguments.steps:
            start = time.process_time()
            conformer = embed(mol, 0, steps)
            if conformer is None:
                raise RuntimeError(f"no conformer of {canonical}")
            bits = atom_pair_3d(mol, conformer)
            cost[steps] += time.process_time() - start
            ladders[steps].append(difference((bits, distances(conformer)), others))
        if len(noise) % 50 == 0:
            print(f"{len(noise)} polymers", file=sys.stderr, flush=True)
    floor = np.array(noise)
    print(
        f"{len(noise)} random polymers of the corpus (sample seed {arguments.seed}; {left_out} "
        f"without MMFF94 parameters or embedding left out); careful recipe "
        f"{1e3 * careful_cost / len(noise):.0f} ms CPU; noise: "
        + ", ".join(
            f"{name} {value:.4f} +- {error:.4f}"
            for name, value, error in zip(
                ("1 - T", "D"), floor.mean(0), standard_error(floor), strict=True
            )
        )
    )
    print(
        "MMFF94 steps | of its cost | loss of T | loss / noise of T | loss of D | loss / noise of D"
    )
    for steps, values in ladders.items():
        loss = np.array(values) - floor
        share = loss.mean(0) / floor.mean(0)
        share_error = standard_error((loss - share * floor) / floor.mean(0))
        cells = [
            f"{mean:.4f} +- {error:.4f} | {ratio:.1%} +- {ratio_error:.1%}"
            for mean, error, ratio, ratio_error in zip(
                loss.mean(0), standard_error(loss), share, share_error, strict=True
            )
        ]
        print(f"{steps} | {cost[steps] / careful_cost:.0%} | {' | '.join(cells)}")


def careful(mol: Chem.Mol, seed: int) -> Conformer | None:
    """Embed with hydrogens and relax until converged; None where that cannot be had."""
    capped, cap_carbons = cap_with_hydrogen(mol)
    num_atoms = capped.GetNumAtoms() - len(cap_carbons)
    full = Chem.AddHs(capped)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed + 1  # type: ignore[assignment]
    if num_atoms < 2 or not rdForceFieldHelpers.MMFFHasAllMoleculeParams(full):
        return None
    if rdDistGeom.EmbedMolecule(full, parameters) != 0:
        return None
    rdForceFieldHelpers.MMFFOptimizeMolecule(full, maxIters=CONVERGED_STEPS)
    coordinates = full.GetConformer().GetPositions()[:num_atoms].astype(np.float32)
    return Conformer(coordinates, np.zeros(num_atoms, dtype=bool), 0)


def distances(conformer: Conformer) -> np.ndarray:
    """Return the distances (N, N) between heavy atoms."""
    heavy = conformer.coordinates[~conformer.is_hydrogen]
    return np.linalg.norm(heavy[:, None] - heavy, axis=-1)


Geometry = tuple[np.ndarray, np.ndarray]  # bits, distances


def difference(one: Geometry, others: list[Geometry]) -> tuple[float, float]:
    """Return 1 - T and D, means over the others."""
    tanimoto = [np.sum(one[0] & bits) / max(np.sum(one[0] | bits), 1) for bits, _ in others]
    upper = np.triu_indices(len(one[1]), 1)
    rms = [np.sqrt(np.mean((one[1] - far)[upper] ** 2)) for _, far in others]
    return 1 - float(np.mean(tanimoto)), float(np.mean(rms))


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over polymers (rows) of each column."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


if __name__ == "__main__":
    sys.exit(main())
