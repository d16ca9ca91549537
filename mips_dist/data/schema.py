"""What the numbers of a sample mean: the part of a model that must agree with the features."""

from collections.abc import Iterable
from typing import Any

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import FEATURE_SCHEMA


def known_schema() -> dict[str, Any]:
    """Return the features that this version of the code can make.

    Values for JSON: version, atom_features (column names), descriptors (group name -> version).
    """
    return {
        "version": FEATURE_SCHEMA,
        "atom_features": list(ATOM_FEATURES),
        "descriptors": {name: group.version for name, group in DESCRIPTOR_GROUPS.items()},
    }


def feature_schema(max_hops: int, descriptors: Iterable[str]) -> dict[str, Any]:
    """Return the features that one model or one set of shards has.

    Parameters
    ----------
    max_hops
        Radius of attention, in bonds of the infinite chain.
    descriptors
        Names of the descriptor groups.

    Returns
    -------
    As `known_schema`, with these groups alone, and with max_hops.
    """
    known = known_schema()
    chosen = {name: known["descriptors"][name] for name in descriptors}
    return known | {"descriptors": chosen, "max_hops": max_hops}
