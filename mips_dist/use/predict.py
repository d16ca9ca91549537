"""Predict a property of one polymer, by itself, from its canonical spelling."""

from functools import lru_cache
from pathlib import Path

import torch

from mips_dist.chem.chain_features import (
    ChainFeatures,
    Counts,
    chain_environments,
    chain_features,
)
from mips_dist.chem.descriptors import descriptor_groups
from mips_dist.chem.psmiles import in_words
from mips_dist.chem.sample import check_machine, content_for, featurize, featurize_each
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import Bundle, TargetScaler, load_bundle
from mips_dist.use.prediction import Estimate


def open_model(model_dir: Path) -> Bundle:
    """Load a model of any kind that this machine can featurize for.

    Raises
    ------
    MipsError
        No such model, or one that this machine cannot featurize for.
    """
    bundle = load_bundle(model_dir, known_schema())
    config = bundle.model.config
    check_machine(content_for(config.descriptors), config.conformer_backend)
    return bundle


def open_property_model(model_dir: Path) -> tuple[Bundle, TargetScaler]:
    """Load a model that predicts a property.

    Raises
    ------
    MipsError
        No such model, one that predicts nothing, or one that this machine cannot featurize for.
    """
    bundle = open_model(model_dir)
    if bundle.scaler is None:
        raise MipsError(
            f"{model_dir} is a pre-trained model, which predicts no property; fine-tune it first"
        )
    return bundle, bundle.scaler


def estimate(bundle: Bundle, canonical: str) -> tuple[Estimate | None, str]:
    """Predict one polymer with what is known of the error; None and the reason, or a remark.

    Parameters as of `predict_value`.
    """
    value, remark = predict_value(bundle, canonical)
    if value is None:
        return None, remark
    assert bundle.scaler is not None
    unit = bundle.scaler["unit"]
    if bundle.calibration is None:
        return Estimate(value, None, None, None, None, unit), remark
    # The partner has read them already, with the other features of the chain.
    has_partner = bundle.partner is not None
    environments = _chain(canonical).environments if has_partner else _environments(canonical)
    found = bundle.calibration.reliability(environments, value)
    return Estimate(value, *found, unit), remark


def predict_value(bundle: Bundle, canonical: str) -> tuple[float | None, str]:
    """Predict one polymer.

    Parameters
    ----------
    bundle
        A property model.
    canonical
        Canonical P-SMILES.

    Returns
    -------
    The prediction in the property's unit, and a remark: empty, or the descriptor groups that the
    polymer does not have. None, and the reason, where chemistry fails on the polymer.
    """
    assert bundle.scaler is not None
    batch, remark = featurized(bundle, canonical)
    if batch is None:
        return None, remark
    with torch.inference_mode():
        z = bundle.model(batch).item()
    value = z * bundle.scaler["std"] + bundle.scaler["mean"]
    if bundle.partner is not None:
        try:
            chain = _chain(canonical)
        except Exception as error:
            return None, f"featurization_failed: {in_words(error)}"
        other = bundle.partner.model.predict(chain).item()
        share = bundle.partner.network_share
        value = share * value + (1.0 - share) * other
    return value, remark


# Every property asks for the same polymer in turn, hence the memory of one here and below.
@lru_cache(maxsize=1)
def _chain(canonical: str) -> ChainFeatures:
    return chain_features([canonical])


@lru_cache(maxsize=1)
def _environments(canonical: str) -> Counts:
    return chain_environments([canonical])


def featurized(bundle: Bundle, canonical: str) -> tuple[PolymerBatch | None, str]:
    """Make what a model reads of one polymer, a batch of its own, and a remark as above."""
    config = bundle.model.config
    return _featurized(
        canonical,
        tuple(config.descriptors),
        config.max_hops,
        config.num_conformers,
        config.conformer_backend,
    )


@lru_cache(maxsize=1)
def _featurized(
    canonical: str, descriptors: tuple[str, ...], max_hops: int, number: int, backend: str
) -> tuple[PolymerBatch | None, str]:
    samples, failed = featurize_each(
        [canonical],
        lambda texts: featurize(
            texts,
            content_for(descriptors),
            max_hops,
            num_conformers=number,
            conformer_backend=backend,
        ),
    )
    if failed:
        return None, failed[0]
    known = descriptor_groups(number, backend)
    groups = [known[name] for name in descriptors]
    batch = collate(stack(samples, [0], groups), pack_size=None)
    absent = [name for name in descriptors if not batch.descriptor_valid[name].item()]
    return batch, f"without {', '.join(absent)}" if absent else ""
