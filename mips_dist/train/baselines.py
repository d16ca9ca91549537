"""Baselines on the same folds as the network, on features of the drawn unit: mean and trees.

Hyperparameters are fixed beforehand and nothing is chosen on a fold of the study, so their rows are
`strict` whatever protocol the network runs under.
"""

from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

from mips_dist.chem.xtb import check_xtb
from mips_dist.data.block import PolymerBlock
from mips_dist.errors import MipsError
from mips_dist.train.results import CHEMPROP, GP_TREES, GP_TREES_XTB

BASELINES = ("mean", "boosting", GP_TREES, GP_TREES_XTB, CHEMPROP)
# Chosen on other folds (fold_seed 20), with the trees below: radius 3 and 2048 bins score the same.
_MORGAN_RADIUS = 2
_MORGAN_BINS = 1024
_DESCRIPTOR_GROUP = "rdkit_2d"

Features = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


def check_installed(names: Iterable[str]) -> None:
    """Refuse a baseline whose package is not there."""
    if CHEMPROP in names and find_spec("chemprop") is None:
        raise MipsError('the baseline chemprop needs: pip install "mips-dist[chemprop]"')
    if GP_TREES_XTB in names:
        check_xtb()


def baseline_features(block: PolymerBlock) -> Features:
    """Return the inputs of the tree ensembles: (G, 1024) Morgan counts, then (G, 200) RDKit values.

    The counts are those of the canonical unit with its attachment points capped by carbon (CH3, or
    CH2 on a double bond). The RDKit descriptors are there if the block has them; NaN where a
    polymer lacks them.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=_MORGAN_RADIUS, fpSize=_MORGAN_BINS
    )
    counts = np.stack([generator.GetCountFingerprintAsNumPy(_capped(p)) for p in block.psmiles])
    parts = [counts.astype(np.float32)]
    if _DESCRIPTOR_GROUP in block.descriptors:
        descriptors = block.descriptors[_DESCRIPTOR_GROUP].astype(np.float32)
        descriptors[~block.descriptor_valid[_DESCRIPTOR_GROUP]] = np.nan
        parts.append(descriptors)
    return np.concatenate(parts, axis=1)


def _capped(psmiles: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(psmiles)
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetAtomicNum(6)
    Chem.SanitizeMol(mol)
    return mol


def fit_predict(
    name: str, train_x: Features, train_y: Values, test_x: Features, seed: int
) -> Values:
    """Fit a baseline to the training rows and predict the test rows, in the unit of the labels.

    Parameters
    ----------
    name
        mean or boosting.
    train_x, test_x
        (R, F) features of the rows.
    train_y
        (R,) labels of the training rows.
    """
    if name == "mean":
        return np.full(len(test_x), train_y.mean())
    # A column that only one or two training rows differ in teaches nothing; most bins are such.
    used = (train_x != np.nanmedian(train_x, axis=0)).sum(axis=0) >= 3
    train_x, test_x = train_x[:, used], test_x[:, used]
    boosting = HistGradientBoostingRegressor(
        max_iter=300, learning_rate=0.07, early_stopping=False, random_state=seed
    )
    forest = ExtraTreesRegressor(n_estimators=150, max_features=0.15, random_state=seed, n_jobs=1)
    predictions = [m.fit(train_x, train_y).predict(test_x) for m in (boosting, forest)]
    mean: Values = np.mean(predictions, axis=0, dtype=np.float64)
    return mean
