"""Predict a property of every polymer of a csv: rows in = rows out.

Each distinct polymer is computed once, by itself, from its canonical spelling, on one thread. So a
prediction depends on the polymer alone, bit for bit: not on its spelling, nor on the other rows.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from mips_dist.chem.chain_features import ChainFeatures, chain_features
from mips_dist.chem.conformer import check_backend
from mips_dist.chem.descriptors import descriptor_groups
from mips_dist.chem.sample import content_for, featurize, featurize_each
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle, TargetScaler, load_bundle
from mips_dist.threads import one_thread
from mips_dist.use.canonicalize import COLUMNS
from mips_dist.use.table import PolymerTable


def predict_file(input: Path, model_dirs: list[Path], output: Path) -> None:
    """Predict for every row of a csv and write the rows with the predictions added.

    The added columns are canonical, status (ok or rejected), reason, then for each model its
    property and its unit.

    Parameters
    ----------
    input
        csv or csv.gz with a column psmiles (or smiles).
    model_dirs
        Property models of different properties, see `mips_dist.model.bundle`.
    output
        csv or csv.gz; appears when it is complete.
    """
    bundles = []
    columns = list(COLUMNS)
    for model_dir in model_dirs:
        bundle, scaler = open_property_model(model_dir)
        if scaler["property"] in columns:
            raise UsageError(f"two models predict {scaler['property']}; give one of them")
        bundles.append(bundle)
        columns += [scaler["property"], f"{scaler['property']}_unit"]
    table = PolymerTable.open(input)
    # More threads would change the order of sums, and with it the last bits.
    with one_thread():
        table.write(output, columns, _predicted_rows(table, bundles))


def open_property_model(model_dir: Path) -> tuple[Bundle, TargetScaler]:
    """Load a model that predicts a property.

    Raises
    ------
    MipsError
        No such model, one that predicts nothing, or one that this machine cannot featurize for.
    """
    bundle = load_bundle(model_dir, known_schema())
    if bundle.model.config.descriptors:
        check_backend(bundle.model.config.conformer_backend)
    if bundle.scaler is None:
        raise MipsError(
            f"{model_dir} is a pre-trained model, which predicts no property; fine-tune it first"
        )
    return bundle, bundle.scaler


def _predicted_rows(table: PolymerTable, bundles: list[Bundle]) -> Iterator[list[str]]:
    known: dict[str, list[str]] = {}  # canonical -> added columns
    for row, canonical, reason in table.rows("predicting"):
        if reason:
            yield [*row, "", "rejected", reason, *[""] * (2 * len(bundles))]
            continue
        if canonical not in known:
            known[canonical] = _added(bundles, canonical)
        yield [*row, *known[canonical]]


def _added(bundles: list[Bundle], canonical: str) -> list[str]:
    values, remarks = [], []
    for bundle in bundles:
        assert bundle.scaler is not None
        value, remark = predict_one(bundle, canonical)
        values += [value, bundle.scaler["unit"] if value else ""]
        if remark and remark not in remarks:
            remarks.append(remark)
    status = "ok" if any(values) else "rejected"
    return [canonical, status, "; ".join(remarks), *values]


def predict_one(bundle: Bundle, canonical: str) -> tuple[str, str]:
    """Predict one polymer, as text: the nine digits that a float32 has; see `predict_value`."""
    value, remark = predict_value(bundle, canonical)
    return "" if value is None else format(value, ".9g"), remark


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
        other = bundle.partner.model.predict(_chain(canonical)).item()
        share = bundle.partner.network_share
        value = share * value + (1.0 - share) * other
    return value, remark


# Every property asks for the same polymer in turn, hence the memory of one here and below.
@lru_cache(maxsize=1)
def _chain(canonical: str) -> ChainFeatures:
    return chain_features([canonical])


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
