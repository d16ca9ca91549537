"""What `gp-trees` needs of a study: features of the chains, and the source that it learns from."""

import hashlib
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mips_dist.chem.chain_features import VERSION, ChainFeatures, chain_features
from mips_dist.data.block import PolymerBlock
from mips_dist.data.files import replacing
from mips_dist.data.folds import Fold
from mips_dist.data.properties import LabelledSet
from mips_dist.model.chain_model import ChainModel
from mips_dist.train.gp_trees import ChainRows, Source, fit_chain_model, fit_source

CHAINS_FILE = "chain_features.npz"
SOURCE_PROPERTY = "egc"  # the largest of the eight sets; the others gain from it

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StudyChains:
    """Features of the polymers of a study, by canonical spelling, and the source's rows.

    Attributes
    ----------
    place
        Canonical spelling -> place in `features`.
    source, source_fold
        Rows of the source property and the fold of each; None where there is no source.
    """

    features: ChainFeatures
    place: dict[str, int]
    source: ChainRows | None
    source_fold: Fold | None
    # By test fold and seed: a teacher asks the same source for every property.
    _sources: dict[tuple[int | None, int], Source] = field(default_factory=dict, init=False)

    def fit(
        self, name: str, canonicals: list[str], value: Values, fold: int | None, seed: int
    ) -> ChainModel:
        """Fit `gp-trees` to training rows of a property.

        Parameters
        ----------
        name
            The property.
        canonicals, value
            The training rows.
        fold
            The test fold, whose polymers the source must not show either; None: no test.
        """
        source = None if name == SOURCE_PROPERTY else self._source(fold, seed)
        rows = ChainRows(self.places(canonicals), value)
        return fit_chain_model(self.features, rows, source, seed)

    def _source(self, fold: int | None, seed: int) -> Source | None:
        if self.source is None or self.source_fold is None:
            return None
        if (fold, seed) not in self._sources:
            kept = (
                np.ones(len(self.source_fold), bool) if fold is None else self.source_fold != fold
            )
            rows = ChainRows(self.source.polymer[kept], self.source.value[kept])
            self._sources[fold, seed] = fit_source(self.features, rows, seed)
        return self._sources[fold, seed]

    def with_xtb(self, block: PolymerBlock) -> "StudyChains":
        """Return the same with one more block of features, the descriptors `xtb` of a study."""
        known = block.descriptors["xtb"].astype(np.float32)
        known[~block.descriptor_valid["xtb"]] = np.nan
        values = np.full((len(self.place), known.shape[1]), np.nan, np.float32)
        values[self.places(block.psmiles)] = known
        return replace(self, features=replace(self.features, xtb=values))

    def places(self, canonicals: list[str]) -> Indices:
        """Return the places of polymers in `features`."""
        return np.array([self.place[c] for c in canonicals], dtype=np.int64)


def load_chains(
    run_dir: Path, sets: list[LabelledSet], folds: list[Fold], names: list[str]
) -> StudyChains:
    """Compute the features of the polymers of some properties and of the source, or reuse them.

    They are kept in the run folder, for the next start of the same study.
    """
    own = {
        labelled.property.name: (labelled, fold) for labelled, fold in zip(sets, folds, strict=True)
    }
    is_source_apart = SOURCE_PROPERTY in own and set(names) != {SOURCE_PROPERTY}
    used = [*names, SOURCE_PROPERTY] if is_source_apart else names
    canonicals = sorted({c for name in used for c in own[name][0].canonical})
    place = {canonical: i for i, canonical in enumerate(canonicals)}
    source, source_fold = None, None
    if is_source_apart:
        labelled, source_fold = own[SOURCE_PROPERTY]
        polymer = np.array([place[c] for c in labelled.canonical], np.int64)
        source = ChainRows(polymer, labelled.value)
    return StudyChains(_features(run_dir / CHAINS_FILE, canonicals), place, source, source_fold)


def _features(path: Path, canonicals: list[str]) -> ChainFeatures:
    key = hashlib.sha256("\n".join([VERSION, *canonicals]).encode()).hexdigest()
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["key"]) == key:
                    return ChainFeatures(**{n: saved[n] for n in saved.files if n != "key"})
        except (TypeError, ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            pass  # damaged or of another version: made again
    features = chain_features(canonicals)
    arrays: dict[str, Any] = features.arrays()
    with replacing(path) as file:
        np.savez_compressed(file, key=np.array(key), **arrays)
    return features
