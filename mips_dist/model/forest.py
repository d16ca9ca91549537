"""A forest of regression trees as arrays: no library, and no pickle, is needed to predict.

Legend: G polymers, F columns, T trees, N nodes of all trees.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

CHUNK = 1024  # polymers whose paths are followed at a time

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees of binary splits; the prediction is the mean over trees.

    Attributes
    ----------
    root
        (T,) int32, first node of each tree.
    column
        (N,) int16, the column that a node looks at; -1: a leaf.
    threshold
        (N,) float32: values up to it go left, which is the next node; of a leaf, its value.
    right
        (N,) int32; without meaning for a leaf.
    """

    root: npt.NDArray[np.int32]
    column: npt.NDArray[np.int16]
    threshold: Features
    right: npt.NDArray[np.int32]

    @classmethod
    def of(cls, fitted: "ExtraTreesRegressor") -> "Forest":
        """Take a fitted ensemble of scikit-learn apart; predictions stay the same.

        Its leaves' values are rounded to single precision, its thresholds to the next lower single:
        no single-precision column changes sides.
        """
        trees = [estimator.tree_ for estimator in fitted.estimators_]
        sizes = [tree.node_count for tree in trees]
        root = np.cumsum([0, *sizes[:-1]])
        start = np.repeat(root, sizes)
        column = np.concatenate([tree.feature for tree in trees])
        is_leaf = column < 0
        left = np.concatenate([tree.children_left for tree in trees]) + start
        assert (is_leaf | (left == np.arange(len(left)) + 1)).all(), "nodes are not depth first"
        exact = np.concatenate([tree.threshold for tree in trees])
        threshold = exact.astype(np.float32)
        above = threshold > exact
        threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
        value = np.concatenate([tree.value[:, 0, 0] for tree in trees]).astype(np.float32)
        return cls(
            root=root.astype(np.int32),
            column=np.maximum(column, -1).astype(np.int16),
            threshold=np.where(is_leaf, value, threshold),
            right=(np.concatenate([t.children_right for t in trees]) + start).astype(np.int32),
        )

    def predict(self, x: Features) -> npt.NDArray[np.float64]:
        """Return (G,) for (G, F); no NaN."""
        chunks = [self._follow(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)]
        return np.concatenate(chunks) if chunks else np.empty(0)

    def _follow(self, x: Features) -> npt.NDArray[np.float64]:
        node = np.repeat(self.root[None, :], len(x), axis=0)
        polymer = np.arange(len(x))[:, None]
        while True:
            column = self.column[node]
            is_leaf = column < 0
            if is_leaf.all():
                mean: npt.NDArray[np.float64] = self.threshold[node].mean(1, dtype=np.float64)
                return mean
            goes_left = x[polymer, np.maximum(column, 0)] <= self.threshold[node]
            chosen = np.where(goes_left, node + 1, self.right[node])
            node = np.where(is_leaf, node, chosen)
