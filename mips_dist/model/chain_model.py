"""A Gaussian process and a forest on features of the infinite chain: the model `gp-trees`.

It may read one more feature, the prediction of a source property by a process of its own: the band
gap of the chain (Egc) is known for nine times as many polymers as the other properties.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mips_dist.chem.chain_features import ChainFeatures
from mips_dist.model.forest import Forest
from mips_dist.model.kernel import GaussianProcess

SOURCE = "source"  # name of the block that the source's prediction makes
PROCESS_SHARE = 0.6  # of the prediction; the forest has the rest

Values = npt.NDArray[np.float64]
Blocks = dict[str, npt.NDArray[np.float32]]


def blocks_of(chain: ChainFeatures) -> Blocks:
    """Return the blocks of real features by name."""
    return {name: array for name, array in chain.arrays().items() if name != "environments"}


def forest_columns(chain: ChainFeatures, blocks: Blocks) -> npt.NDArray[np.float32]:
    """Return all features side by side, (G, environments then blocks); NaN where there is none."""
    return np.concatenate([chain.environments.astype(np.float32), *blocks.values()], axis=1)


@dataclass(frozen=True, slots=True)
class ChainModel:
    """A fitted model.

    Attributes
    ----------
    process, forest
        Its two parts.
    columns, fill
        (F,) columns of `forest_columns` that the forest reads, and what stands for NaN in them.
    source
        Predicts the feature `SOURCE`, or None.
    """

    process: GaussianProcess
    forest: Forest
    columns: npt.NDArray[np.int64]
    fill: npt.NDArray[np.float32]
    source: GaussianProcess | None = None

    def predict(self, chain: ChainFeatures) -> Values:
        """Predict (G,) in the unit of the property."""
        blocks = blocks_of(chain)
        if self.source is not None:
            predicted = self.source.predict(chain.environments, blocks)
            blocks[SOURCE] = predicted[:, None].astype(np.float32)
        smooth = self.process.predict(chain.environments, blocks)
        rough = self.forest.predict(
            filled(forest_columns(chain, blocks)[:, self.columns], self.fill)
        )
        return PROCESS_SHARE * smooth + (1.0 - PROCESS_SHARE) * rough


def filled(x: npt.NDArray[np.float32], fill: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return x with the column's value for every NaN."""
    return np.where(np.isnan(x), fill, x)
