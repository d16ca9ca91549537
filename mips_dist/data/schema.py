"""What the numbers of a sample mean: the part of a model that must agree with the features."""

from collections.abc import Iterable
from typing import Any

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.graph import ATOM_FEATURES, FEATURE_SCHEMA


def feature_schema(max_hops: int, descriptors: Iterable[str]) -> dict[str, Any]:
    """Return the feature schema that this version of the code makes.

    Parameters
    ----------
    max_hops
        Radius of attention, in bonds of the infinite chain.
    descriptors
        Names of the descriptor groups that are read.

    Returns
    -------
    Values for JSON: version, atom_features (column names), max_hops, descriptors (name -> version).
    """
    return {
        "version": FEATURE_SCHEMA,
        "atom_features": list(ATOM_FEATURES),
        "max_hops": max_hops,
        "descriptors": {name: DESCRIPTOR_GROUPS[name].version for name in descriptors},
    }
