"""What the numbers of a sample mean: the part of a model that must agree with the features."""

from collections.abc import Iterable
from typing import Any

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.data.shards import Manifest
from mips_dist.errors import MipsError


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


def check_shards(folder: object, manifest: Manifest, max_hops: int) -> None:
    """Raise MipsError where shards were made with another radius or by another version.

    Parameters
    ----------
    folder
        How the line names the shards.
    manifest
        Theirs.
    max_hops
        Radius of attention of the model.
    """
    if manifest.max_hops != max_hops:
        raise MipsError(
            f"shards {folder} were made with max_hops={manifest.max_hops}, the model has "
            f"model.max_hops={max_hops}; use that value here or preprocess again"
        )
    found = {group["name"]: group["version"] for group in manifest.descriptors}
    known = known_schema()
    if manifest.feature_schema != known["version"] or not (
        found.items() <= known["descriptors"].items()
    ):
        raise MipsError(
            f"shards {folder} hold features of another version of mips_dist "
            f"(schema {manifest.feature_schema}, descriptors {found}); preprocess again"
        )
