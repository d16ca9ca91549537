"""The mean of the network and `gp-trees`, from what a study has found of them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from mips_dist.train.fold_config import PROTOCOLS
from mips_dist.train.results import ENSEMBLE, GP_TREES, NETWORK, Cell, FoldResult

# Of the ensemble; `gp-trees` has the rest. Chosen on other folds (fold_seed 20), see docs/log.md.
NETWORK_SHARE = 0.4


def ensembles(
    results: Mapping[Cell, FoldResult],
    names: Iterable[str],
    num_folds: int,
    seeds: Sequence[int],
) -> list[FoldResult]:
    """Return the ensemble's predictions on the folds where all of its members are finished.

    It is the mean of the networks of all seeds, averaged with `gp-trees`; its protocol is that of
    the networks. Nothing else of it is chosen on any fold, and its predictions follow from those of
    its members, so it is never in the ledger. Its scores are NaN: they take labels.

    Parameters
    ----------
    results
        Of the members, and any others.
    names
        Properties.
    """
    found = []
    for name, protocol, fold in product(names, PROTOCOLS, range(num_folds)):
        networks = [Cell(NETWORK, name, fold, seed, protocol) for seed in seeds]
        chain = Cell(GP_TREES, name, fold, 0, "strict")
        if any(cell not in results for cell in [*networks, chain]):
            continue
        members, other = [results[cell] for cell in networks], results[chain]
        if any(len(member.prediction) != len(other.prediction) for member in members):
            continue  # a ledger that no study wrote
        network = np.mean([member.prediction for member in members], axis=0)
        prediction = NETWORK_SHARE * network + (1 - NETWORK_SHARE) * np.array(other.prediction)
        found.append(
            FoldResult(
                **Cell(ENSEMBLE, name, fold, 0, protocol)._asdict(),
                r2=float("nan"),
                rmse=float("nan"),
                mae=float("nan"),
                unit=other.unit,
                num_train=other.num_train,
                seconds=sum(member.seconds for member in [*members, other]),
                row=other.row,
                prediction=prediction.tolist(),
            )
        )
    return found
