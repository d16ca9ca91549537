"""Train the model `gp-trees` on some rows of a property.

Nothing of it is chosen on a fold: hyperparameters of the process follow from the marginal
likelihood of the training rows, those of the forest are fixed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesRegressor

from mips_dist.chem.chain_features import ChainFeatures
from mips_dist.model.chain_model import SOURCE, ChainModel, blocks_of, filled, forest_columns
from mips_dist.model.forest import Forest
from mips_dist.model.kernel import GaussianProcess
from mips_dist.train.gaussian_process import fit_gaussian_process

NUM_TREES = 100
MAX_LEAVES = 1000  # of a tree, about: a model that is given away should be small
MIN_DIFFERING = 3  # a column that only one or two rows differ in teaches nothing
# Long units of the source resemble no labelled polymer and cost with the cube of their number.
MAX_SOURCE_ATOMS = 20

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChainRows:
    """Rows of one property that point into features of chains.

    Attributes
    ----------
    polymer
        (R,) place in the features.
    value
        (R,) labels.
    """

    polymer: Indices
    value: Values


@dataclass(frozen=True, slots=True)
class Source:
    """The process of another property, whose word is a feature.

    Attributes
    ----------
    process
        Fitted to the source's training rows.
    left_out
        Place in the features -> what it says of that polymer of its own without its label.
    """

    process: GaussianProcess
    left_out: dict[int, float]


def fit_source(chain: ChainFeatures, rows: ChainRows, seed: int) -> Source:
    """Fit the source to its training rows: none may be of a polymer that is tested."""
    is_small = chain.num_atoms()[rows.polymer] <= MAX_SOURCE_ATOMS
    polymer, value = rows.polymer[is_small], rows.value[is_small]
    own = chain.select(polymer)
    process, left_out = fit_gaussian_process(own.environments, blocks_of(own), value, seed)
    return Source(process, dict(zip(polymer.tolist(), left_out.tolist(), strict=True)))


def fit_chain_model(
    chain: ChainFeatures, rows: ChainRows, source: Source | None, seed: int
) -> ChainModel:
    """Fit both parts to rows of one property.

    Parameters
    ----------
    chain
        Features of all polymers.
    rows
        Training rows; no others are looked at.
    source
        Fitted without any polymer that is tested.
    seed
        Of the forest, and of the rows that choose the hyperparameters.
    """
    own = chain.select(rows.polymer)
    blocks = blocks_of(own)
    if source is not None:
        predicted = source.process.predict(own.environments, blocks)
        # What the source says of its own rows is their label: without it they would look alike to
        # polymers that it does not know in training, and not in use.
        predicted = np.array(
            [
                source.left_out.get(p, v)
                for p, v in zip(rows.polymer.tolist(), predicted, strict=True)
            ]
        )
        blocks[SOURCE] = predicted[:, None].astype(np.float32)
    process, _ = fit_gaussian_process(own.environments, blocks, rows.value, seed)
    x = forest_columns(own, blocks)
    fill = np.nan_to_num(np.nanmedian(x, axis=0)).astype(np.float32)
    x = filled(x, fill)
    (columns,) = ((x != fill).sum(axis=0) >= MIN_DIFFERING).nonzero()
    trees = ExtraTreesRegressor(
        n_estimators=NUM_TREES,
        max_features=0.15,
        min_samples_leaf=1 + len(rows.value) // MAX_LEAVES,
        random_state=seed,
        n_jobs=1,
    )
    forest = Forest.of(trees.fit(x[:, columns], rows.value))
    source_process = None if source is None else source.process
    return ChainModel(process, forest, columns, fill[columns], source_process)
