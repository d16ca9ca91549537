"""What the numbers of a sample mean: the part of a model that must agree with the features."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS, descriptor_groups, has
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import FEATURE_SCHEMA
from mips_dist.data.shards import Manifest
from mips_dist.errors import MipsError

if TYPE_CHECKING:
    from mips_dist.model.mips import MipsConfig

# Keys of preprocessing, of the model and of the manifest; the first is the graph's.
_SETTINGS = ("max_hops", "num_conformers", "conformer_backend")


def known_schema() -> dict[str, Any]:
    """Return the features that this version of the code can make.

    Values for JSON: version, atom_features (column names), descriptors (group name -> version).
    """
    return {
        "version": FEATURE_SCHEMA,
        "atom_features": list(ATOM_FEATURES),
        "descriptors": {name: group.version for name, group in DESCRIPTOR_GROUPS.items()},
    }


def feature_schema(
    max_hops: int,
    descriptors: Iterable[str],
    num_conformers: int = 1,
    conformer_backend: str = "rdkit",
) -> dict[str, Any]:
    """Return the features that one model or one set of shards has.

    Parameters
    ----------
    max_hops
        Radius of attention, in bonds of the infinite chain.
    descriptors
        Names of the descriptor groups.
    num_conformers, conformer_backend
        Conformers that groups are made of.

    Returns
    -------
    As `known_schema`, with these groups alone, and with max_hops; where one of the groups needs
    conformers, with num_conformers and conformer_backend.
    """
    known = known_schema()
    chosen = {name: known["descriptors"][name] for name in descriptors}
    schema = known | {"descriptors": chosen, "max_hops": max_hops}
    if any(has(DESCRIPTOR_GROUPS[name].content, "full") for name in chosen):
        schema |= {"num_conformers": num_conformers, "conformer_backend": conformer_backend}
    return schema


def model_schema(config: "MipsConfig") -> dict[str, Any]:
    """Return the features that a model of this configuration reads, see `feature_schema`."""
    return feature_schema(
        config.max_hops, config.descriptors, config.num_conformers, config.conformer_backend
    )


def check_shards(folder: object, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raise MipsError where shards were made with another setting or by another version.

    Parameters
    ----------
    folder
        How the line names the shards.
    manifest
        Theirs.
    wanted
        The model's `feature_schema`.
    """
    for key in _SETTINGS if manifest.descriptors else _SETTINGS[:1]:
        found = getattr(manifest, key)
        if key in wanted and found != wanted[key]:
            raise MipsError(
                f"shards {folder} were made with {key}={found}, the model has "
                f"model.{key}={wanted[key]}; use that value here or preprocess again"
            )
    groups = descriptor_groups(manifest.num_conformers, manifest.conformer_backend)
    known = {name: group.version for name, group in groups.items()}
    found = {group["name"]: group["version"] for group in manifest.descriptors}
    if manifest.feature_schema != FEATURE_SCHEMA or not found.items() <= known.items():
        raise MipsError(
            f"shards {folder} hold features of another version of mips_dist "
            f"(schema {manifest.feature_schema}, descriptors {found}); preprocess again"
        )
