"""`PolymerRegressor`: P-SMILES in, a property out, as an estimator of scikit-learn."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags, check_array, check_random_state, column_or_1d
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from mips_dist.chem.chain_features import ChainFeatures, chain_features
from mips_dist.chem.psmiles import in_words
from mips_dist.data.column import canonical_column, in_one_line
from mips_dist.data.files import file_sha256, flush_to_disk
from mips_dist.errors import MipsError
from mips_dist.model.chain_arrays import load_chain_model, save_chain_model
from mips_dist.threads import one_thread
from mips_dist.train.gp_trees import ChainRows, fit_chain_model

MIN_POLYMERS = 5
ON_INVALID = ("raise", "nan")
CHAIN = "chain_model.safetensors.gz"
CONFIG = "regressor.json"
FORMAT = 1  # raised when the files change their meaning
# Folds and grids ask for the same polymers again and again; 4 kB each.
MAX_KNOWN = 10_000

Values = npt.NDArray[np.float64]


class PolymerRegressor(RegressorMixin, BaseEstimator):
    """Predict a property of polymers from their P-SMILES.

    The model is `gp-trees` of the study (docs/study.md): .6 of a Gaussian process and .4 of 100
    extremely randomised trees on features of the infinite chain. Its hyperparameters follow from
    the marginal likelihood of the training rows, so there is nothing to tune, and it fits a few
    hundred polymers in seconds. On the eight benchmark sets its mean R2 equals that of the ensemble
    with the network, which `mips finetune` trains in minutes.

    X is one column of P-SMILES: a list, an array (n,) or (n, 1), a series, or a frame of pandas or
    polars with one column. A prediction depends on the polymer alone, bit for bit: not on its
    spelling, nor on the other rows.

    Rows of one polymer, in any spelling, belong in one fold. Where X has such rows, give
    ``groups=canonical_groups(X)`` and ``cv=GroupKFold()`` to `cross_val_score` and its kin.

    Parameters
    ----------
    on_invalid
        What `predict` makes of a row that is no polymer: "raise" a ValueError that names it, or
        give "nan". `fit` always raises: a label must not vanish in silence.
    random_state
        Seed of the trees, and of the rows that choose hyperparameters where there are more than
        800; an int, a RandomState, or None for another result with every fit.

    Attributes
    ----------
    chain_model_
        The fitted `mips_dist.model.chain_model.ChainModel`.
    num_polymers_
        Distinct polymers that it was fitted to.

    Examples
    --------
    >>> from mips_dist import PolymerRegressor
    >>> model = PolymerRegressor().fit(psmiles, tg)  # doctest: +SKIP
    >>> model.predict(["*CC(*)c1ccccc1"])  # doctest: +SKIP
    array([371.2])
    """

    def __init__(
        self, *, on_invalid: str = "raise", random_state: int | np.random.RandomState | None = 0
    ) -> None:
        self.on_invalid = on_invalid
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "PolymerRegressor":  # noqa: N803  (scikit-learn's name)
        """Fit to labelled polymers.

        Parameters
        ----------
        X
            n P-SMILES, in any spelling.
        y
            (n,) finite labels, in any unit; that of the predictions. One property: for several, use
            one regressor each, or `sklearn.multioutput.MultiOutputRegressor`.

        Raises
        ------
        ValueError
            A row that is no polymer, fewer than 5 distinct polymers, labels that are no numbers.
        """
        _check_choice(self.on_invalid)
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, "
                "but the target y is None."
            )
        canonicals, reasons = canonical_column(X)
        check_consistent_length(canonicals, y)
        value = _labels(y)
        known, failed = _features(dict.fromkeys(c for c in canonicals if c))
        reasons |= {i: failed[c] for i, c in enumerate(canonicals) if c in failed}
        if reasons:
            raise ValueError(in_one_line(X, reasons))
        if len(known) < MIN_POLYMERS:
            raise ValueError(
                f"{len(known)} distinct polymers (n_samples = {len(canonicals)}); a fit needs at "
                f"least {MIN_POLYMERS}"
            )
        place = {canonical: i for i, canonical in enumerate(known)}
        rows = ChainRows(np.array([place[c] for c in canonicals], np.int64), value)
        with one_thread():
            self.chain_model_ = fit_chain_model(_stacked(known), rows, None, self._seed())
        self.num_polymers_ = len(known)
        return self

    def predict(self, X: Any) -> Values:  # noqa: N803
        """Predict (n,) float64 in the unit of the labels.

        Parameters
        ----------
        X
            n P-SMILES.

        Raises
        ------
        ValueError
            A row that is no polymer, unless ``on_invalid="nan"``.
        """
        check_is_fitted(self)
        _check_choice(self.on_invalid)
        canonicals, reasons = canonical_column(X)
        if not canonicals:
            raise ValueError("X has no rows; give at least one P-SMILES (minimum of 1 is required)")
        known, failed = _features(dict.fromkeys(c for c in canonicals if c))
        reasons |= {i: failed[c] for i, c in enumerate(canonicals) if c in failed}
        if reasons and self.on_invalid == "raise":
            raise ValueError(in_one_line(X, reasons) + '; on_invalid="nan" gives NaN for them')
        # One by one and on one thread: a product of matrices would differ in its last bits.
        with one_thread():
            value = {c: self.chain_model_.predict(own).item() for c, own in known.items()}
        return np.array([value.get(canonical, np.nan) for canonical in canonicals])

    def save(self, path: str | Path) -> None:
        """Write the fitted model as a folder, without pickle; an earlier one is replaced.

        Raises
        ------
        MipsError
            The folder holds something else.
        """
        check_is_fitted(self)
        folder = Path(path)
        others = {p.name for p in folder.iterdir()} - {CHAIN, CONFIG} if folder.is_dir() else set()
        if others or folder.is_file():
            raise MipsError(f"{folder} holds something else than a regressor; give another folder")
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_chain_model(self.chain_model_, partial / CHAIN)
        seed = self.random_state if isinstance(self.random_state, int) else None
        config = {
            "format": FORMAT,
            "on_invalid": self.on_invalid,
            "random_state": seed,
            "num_polymers": self.num_polymers_,
            "chain_model_sha256": file_sha256(partial / CHAIN),
        }
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for part in (*partial.iterdir(), partial):
            flush_to_disk(part)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    @classmethod
    def load(cls, path: str | Path) -> "PolymerRegressor":
        """Read what `save` wrote; it predicts the same, bit for bit.

        Raises
        ------
        MipsError
            There is no such folder, it is damaged, or another version wrote it.
        """
        folder = Path(path)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            found, sha256 = config["format"], config["chain_model_sha256"]
            model = cls(on_invalid=config["on_invalid"], random_state=config["random_state"])
            num_polymers = config["num_polymers"]
        except OSError as error:
            raise MipsError(f"{folder} is no saved regressor: it has no {CONFIG}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise MipsError(f"{folder / CONFIG} is damaged; copy the folder again") from error
        if found != FORMAT:
            raise MipsError(f"{folder} has format {found}, this version reads {FORMAT}; fit again")
        if not (folder / CHAIN).is_file() or file_sha256(folder / CHAIN) != sha256:
            raise MipsError(f"{folder / CHAIN} is not the file that was saved; copy it again")
        model.chain_model_ = load_chain_model(folder / CHAIN)
        model.num_polymers_ = num_polymers
        return model

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def canonical_groups(X: Any) -> npt.NDArray[np.int64]:  # noqa: N803
    """Give each polymer of a column a number; equal ones, in any spelling, have the same.

    For `groups=` of scikit-learn's GroupKFold and its kin: a polymer that stands in training and in
    test makes a score too good.

    Parameters
    ----------
    X
        n P-SMILES, as for `PolymerRegressor`.

    Returns
    -------
    (n,) numbers from 0, by first appearance.

    Raises
    ------
    ValueError
        A row that is no polymer.
    """
    canonicals, reasons = canonical_column(X)
    if reasons:
        raise ValueError(in_one_line(X, reasons))
    number = {canonical: i for i, canonical in enumerate(dict.fromkeys(canonicals))}
    return np.array([number[canonical] for canonical in canonicals], np.int64)


def _check_choice(on_invalid: str) -> None:
    if on_invalid not in ON_INVALID:
        raise ValueError(f"on_invalid={on_invalid!r} must be one of {', '.join(ON_INVALID)}")


def _labels(y: Any) -> Values:
    shape = np.shape(y)
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y has {shape[1]} columns; fit one regressor for each, or wrap this one in "
            "sklearn.multioutput.MultiOutputRegressor"
        )
    values = check_array(
        column_or_1d(y, warn=True), ensure_2d=False, dtype=np.float64, input_name="y"
    )
    labels: Values = values
    return labels


@lru_cache(maxsize=MAX_KNOWN)
def _one(canonical: str) -> ChainFeatures | str:
    """Return the features of one polymer, or why it has none."""
    try:
        return chain_features([canonical])
    except MipsError:
        raise  # this machine lacks something; no polymer is at fault
    except Exception as error:  # RDKit raises errors of many classes on rare polymers
        return f"featurization_failed: {in_words(error)}"


def _features(canonicals: dict[str, None]) -> tuple[dict[str, ChainFeatures], dict[str, str]]:
    """Return the features of distinct polymers, and why the others have none."""
    known: dict[str, ChainFeatures] = {}
    failed: dict[str, str] = {}
    for canonical in canonicals:
        own = _one(canonical)
        if isinstance(own, str):
            failed[canonical] = own
        else:
            known[canonical] = own
    return known, failed


def _stacked(known: dict[str, ChainFeatures]) -> ChainFeatures:
    each = [own.arrays() for own in known.values()]
    return ChainFeatures(**{name: np.concatenate([own[name] for own in each]) for name in each[0]})
