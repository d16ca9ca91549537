"""The contributions of atoms, fragments and whole-chain features to one prediction."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mips_dist.chem.chain_features import chain_features
from mips_dist.chem.chain_parts import chain_parts
from mips_dist.chem.fragments import Fragment, fragments
from mips_dist.chem.symmetry import equal_atoms
from mips_dist.model.bundle import Bundle
from mips_dist.use.explain.known import KnownInPart
from mips_dist.use.explain.shapley import Division, divide
from mips_dist.use.predict import featurized, predict_value

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prediction by its parts, in the unit of the property.

    Attributes
    ----------
    canonical
        What was explained.
    property, unit
        Of the model.
    prediction
        What `mips predict` gives.
    reference
        What the model says of a polymer that it knows nothing of: a constant of the model.
    label_mean
        Mean of the labels that the model was trained on, for comparison.
    atoms, atom_errors
        (n,) contributions of the atoms of the canonical unit, and their standard errors.
    fragments
        Each with its contribution and standard error; every atom is in one.
    groups
        Features of the whole chain: name, contribution, standard error. Atoms and groups sum to
        ``prediction - reference``.
    equal
        (n,) the first of the atoms that each is equal to by symmetry.
    is_exact
        Whether all sets of atoms were valued; else the standard errors say how much orders differ.
    remark
        As `mips predict` gives it.
    """

    canonical: str
    property: str
    unit: str
    prediction: float
    reference: float
    label_mean: float
    atoms: Values
    atom_errors: Values
    fragments: list[tuple[Fragment, float, float]]
    groups: list[tuple[str, float, float]]
    equal: npt.NDArray[np.int64]
    is_exact: bool
    remark: str


def explain(bundle: Bundle, canonical: str) -> tuple[Explanation | None, str]:
    """Divide the prediction for one polymer among its parts; call it on one thread.

    Parameters
    ----------
    bundle
        A property model.
    canonical
        Text written by `mips_dist.chem.psmiles.canonicalize`.

    Returns
    -------
    The explanation; or None and the reason, where chemistry fails on the polymer.
    """
    scaler = bundle.scaler
    assert scaler is not None
    prediction, remark = predict_value(bundle, canonical)
    batch, _ = featurized(bundle, canonical)
    if prediction is None or batch is None:
        return None, remark
    has_partner = bundle.partner is not None
    shown = KnownInPart(
        bundle,
        batch,
        chain_parts(canonical) if has_partner else None,
        chain_features([canonical]) if has_partner else None,
    )
    n = shown.num_atoms
    # Of the polymer alone: the same orders for every model, spelling and machine.
    seed = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big")
    division = divide(shown.predict, n + len(shown.groups), prediction, seed)
    equal = equal_atoms(canonical)
    estimates = _over_equal(division, equal)
    values, errors = _with_errors(estimates)
    parts = []
    for part in fragments(canonical):
        value, error = _with_errors(estimates[:, list(part.atoms)].sum(1, keepdims=True))
        parts.append((part, float(value[0]), float(error[0])))
    groups = [
        (name, float(values[n + i]), float(errors[n + i])) for i, name in enumerate(shown.groups)
    ]
    return Explanation(
        canonical=canonical,
        property=scaler["property"],
        unit=scaler["unit"],
        prediction=prediction,
        reference=division.none,
        label_mean=scaler["mean"],
        atoms=values[:n],
        atom_errors=errors[:n],
        fragments=parts,
        groups=groups,
        equal=equal,
        is_exact=len(estimates) == 1,
        remark=remark,
    ), remark


def _over_equal(division: Division, equal: npt.NDArray[np.int64]) -> Values:
    """Give equal atoms the mean of their shares, in every estimate: the sums stay."""
    estimates = division.estimates.copy()
    for first in np.unique(equal):
        (atoms,) = (equal == first).nonzero()
        estimates[:, atoms] = estimates[:, atoms].mean(1, keepdims=True)
    return estimates


def _with_errors(estimates: Values) -> tuple[Values, Values]:
    """Return mean and standard error over estimates (K, ...); errors are 0 where K is 1."""
    number = len(estimates)
    mean: Values = estimates.mean(0)
    if number == 1:
        return mean, np.zeros_like(mean)
    errors: Values = estimates.std(0, ddof=1) / np.sqrt(number)
    return mean, errors
