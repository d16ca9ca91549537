"""A model as one directory: weights, configuration, scaler, metrics, card; nothing is pickled."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mips_dist.data.files import file_sha256, flush_to_disk
from mips_dist.errors import MipsError
from mips_dist.model.calibration import Calibration, load_calibration, save_calibration
from mips_dist.model.card import card
from mips_dist.model.chain_arrays import load_chain_model, save_chain_model
from mips_dist.model.chain_model import ChainModel
from mips_dist.model.mips import MaskedAtomModel, MipsConfig, PropertyModel

Model = MaskedAtomModel | PropertyModel
Kind = Literal["pretrained", "property"]
MODEL_OF_KIND: dict[str, type[Model]] = {"pretrained": MaskedAtomModel, "property": PropertyModel}

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
CHAIN = "chain_model.safetensors.gz"
CALIBRATION = "calibration.safetensors.gz"
SCALER = "scaler.json"
METRICS = "metrics.json"
CARD = "README.md"
NOTES = "NOTES.md"  # written by hand, where the card cannot know
FILES = frozenset({WEIGHTS, CHAIN, CALIBRATION, CONFIG, SCALER, METRICS, CARD, NOTES})
FORMAT = 1  # raised when the files below change their meaning


class TargetScaler(TypedDict):
    """How a prediction becomes a physical value: z * std + mean, in `unit`."""

    property: str
    unit: str
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Partner:
    """The second member of an ensemble, beside the network.

    Attributes
    ----------
    model
        On features of the chain.
    network_share
        Of the prediction; the partner has the rest.
    """

    model: ChainModel
    network_share: float


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model directory in memory.

    Attributes
    ----------
    kind
        "pretrained" (masked atoms) or "property" (predicts one property).
    model
        On the CPU, in evaluation mode; its `config` says how it is built.
    feature_schema
        What the inputs mean, see `mips_dist.data.schema`.
    scaler
        None for a pre-trained model.
    metrics
        What was measured when the model was made.
    training
        How a pre-trained model was made, see `mips_dist.train.record`; None where nothing says so.
    partner
        Of a property model that is an ensemble.
    calibration
        Of a property model; None where it was made without cross-validation, or before there were
        calibrations: its predictions come without intervals.
    """

    kind: Kind
    model: Model
    feature_schema: dict[str, Any]
    scaler: TargetScaler | None
    metrics: dict[str, Any]
    training: dict[str, Any] | None
    partner: Partner | None
    calibration: Calibration | None = None


def save_bundle(
    directory: Path,
    model: Model,
    *,
    feature_schema: Mapping[str, Any],
    metrics: Mapping[str, Any],
    trained_on: str,
    scaler: TargetScaler | None = None,
    training: Mapping[str, Any] | None = None,
    notes: str | None = None,
    partner: Partner | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a model directory, all of it or nothing.

    An earlier model at the same place is replaced as a whole.

    Parameters
    ----------
    directory
        Made here; must not exist, be empty, or hold a model.
    model
        With plain (gathered) parameters, which are stored in the type that they have.
    feature_schema
        From `mips_dist.data.schema.feature_schema`.
    metrics
        Values for JSON.
    trained_on
        One sentence for the card: which polymers, how many.
    scaler
        Of the training folds; needed for a property model and for no other.
    training
        Of a pre-trained model, from `mips_dist.train.record`.
    notes
        Markdown that stands beside the card.
    partner
        Of a property model that is an ensemble.
    calibration
        Of a property model.
    """
    is_property = isinstance(model, PropertyModel)
    assert is_property == (scaler is not None), "a property model, and no other, has a scaler"
    _check_replaceable(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, partial / WEIGHTS)
    (partial / WEIGHTS).chmod(0o644)  # safetensors makes it private; the other files are not
    config = {
        "format": FORMAT,
        "kind": "property" if is_property else "pretrained",
        "model": asdict(model.config),
        "feature_schema": dict(feature_schema),
        "weights_sha256": file_sha256(partial / WEIGHTS),
    }
    if training is not None:
        config["training"] = dict(training)
    if partner is not None:
        save_chain_model(partner.model, partial / CHAIN)
        config["ensemble"] = {
            "network_share": partner.network_share,
            "chain_model_sha256": file_sha256(partial / CHAIN),
        }
    if calibration is not None:
        save_calibration(calibration, partial / CALIBRATION)
        config["calibration"] = {"sha256": file_sha256(partial / CALIBRATION)}
    _write_json(partial / CONFIG, config)
    _write_json(partial / METRICS, dict(metrics))
    if scaler is not None:
        _write_json(partial / SCALER, dict(scaler))
    has = {CHAIN: partner, CALIBRATION: calibration, SCALER: scaler, NOTES: notes}
    files = [WEIGHTS, CONFIG, METRICS, *(name for name, what in has.items() if what)]
    text = card(config, metrics, trained_on, scaler, weights, files)
    (partial / CARD).write_text(text, encoding="utf-8")
    if notes:
        (partial / NOTES).write_text(notes, encoding="utf-8")

    for path in (*partial.iterdir(), partial):
        flush_to_disk(path)
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    flush_to_disk(directory.parent)


def load_bundle(directory: Path, expected_schema: Mapping[str, Any]) -> Bundle:
    """Read a model directory.

    Parameters
    ----------
    directory
        Written by `save_bundle`.
    expected_schema
        What this version of the code makes (`mips_dist.data.schema.known_schema`), or the schema
        of the shards that the model is to run on.

    Raises
    ------
    MipsError
        A file is missing or damaged, the weights are not those that were saved, or the model was
        trained on other features than `expected_schema`.
    """
    if not (directory / CONFIG).is_file():
        raise MipsError(f"{directory} is no model directory: it has no {CONFIG}")
    config = _read_json(directory / CONFIG)
    if config.get("format") != FORMAT:
        raise MipsError(
            f"{directory} has model format {config.get('format')}, this version reads {FORMAT}; "
            "use the version of mips_dist that wrote it, or train again"
        )
    try:
        kind, schema, sha256 = config["kind"], config["feature_schema"], config["weights_sha256"]
        model_class = MODEL_OF_KIND[kind]
        model_config = MipsConfig(**config["model"])
        if not isinstance(schema.get("descriptors", {}), dict):
            raise TypeError("feature_schema.descriptors is no object")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MipsError(
            f"{directory / CONFIG} describes no model of this version ({error}); "
            "copy the whole directory again, or train again"
        ) from error
    ensemble = config.get("ensemble")
    calibration = config.get("calibration")
    missing = [name for name in needed_files(config) if not (directory / name).is_file()]
    if missing:
        raise MipsError(f"{directory} lacks {', '.join(missing)}; copy the whole directory again")
    _check_schema(directory, schema, expected_schema)
    model = _load_model(model_class, model_config, directory / WEIGHTS, sha256)
    return Bundle(
        kind=kind,
        model=model.eval(),
        feature_schema=schema,
        scaler=_read_scaler(directory / SCALER) if kind == "property" else None,
        metrics=_read_json(directory / METRICS),
        training=config.get("training"),
        partner=_load_partner(directory, ensemble) if ensemble else None,
        calibration=_load_calibration(directory, calibration) if calibration else None,
    )


def _load_partner(directory: Path, ensemble: Mapping[str, Any]) -> Partner:
    try:
        share, sha256 = float(ensemble["network_share"]), ensemble["chain_model_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise MipsError(
            f"{directory / CONFIG} describes no ensemble ({error}); copy the whole directory again"
        ) from error
    _check_sha256(directory / CHAIN, sha256)
    return Partner(load_chain_model(directory / CHAIN), share)


def _load_calibration(directory: Path, described: Any) -> Calibration:
    if not isinstance(described, dict) or set(described) != {"sha256"}:
        raise MipsError(
            f"{directory / CONFIG} describes no calibration; copy the whole directory again"
        )
    _check_sha256(directory / CALIBRATION, described["sha256"])
    return load_calibration(directory / CALIBRATION)


def is_complete(directory: Path) -> bool:
    """Tell whether a model directory has all that it needs, with the weights that were saved."""
    try:
        config = _read_json(directory / CONFIG)
        for name in (METRICS, SCALER):
            if name in needed_files(config):
                _read_json(directory / name)
        sums = {WEIGHTS: config.get("weights_sha256")}
        if "ensemble" in config:
            sums[CHAIN] = config["ensemble"].get("chain_model_sha256")
        if "calibration" in config:
            sums[CALIBRATION] = config["calibration"].get("sha256")
        return all(file_sha256(directory / name) == sha256 for name, sha256 in sums.items())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, AttributeError, MipsError):
        return False


def needed_files(config: Mapping[str, Any]) -> list[str]:
    """Return the files that a model has beside its configuration, by what that says."""
    has = {
        SCALER: config.get("kind") == "property",
        CHAIN: config.get("ensemble"),
        CALIBRATION: config.get("calibration"),
    }
    return [WEIGHTS, METRICS, *(name for name, what in has.items() if what)]


def _load_model(model_class: type[Model], config: MipsConfig, path: Path, sha256: str) -> Model:
    """Make the model with the weights of a file; those that were stored in bf16 become fp32 here.

    Nothing is made before the file is known to hold what the configuration asks for: otherwise a
    few bytes of a configuration would fill the memory.
    """
    _check_sha256(path, sha256)
    try:
        with safe_open(str(path), "pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if config.num_layers > len(stored):
            raise ValueError("more layers than weights")
        with torch.device("meta"):
            wanted = model_class(config).state_dict()
        if stored != {name: list(weight.shape) for name, weight in wanted.items()}:
            raise ValueError("other names or shapes")
        model = model_class(config)
        model.load_state_dict(load_file(path))
    except (RuntimeError, TypeError, ValueError, OverflowError, SafetensorError) as error:
        raise MipsError(
            f"{path} does not fit the model that {CONFIG} describes; copy the whole directory again"
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in model.state_dict().values()):
        raise MipsError(f"{path} holds numbers that are not finite; use another model")
    return model


def _check_sha256(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise MipsError(
            f"{path} is not the file that was saved (sha256 differs from {CONFIG}); "
            "copy the whole directory again"
        )


def _read_scaler(path: Path) -> TargetScaler:
    value = _read_json(path)
    is_one = set(value) == set(TargetScaler.__annotations__)
    is_one = is_one and all(isinstance(value[key], str) for key in ("property", "unit"))
    numbers = [value.get("mean"), value.get("std")]
    if not is_one or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise MipsError(f"{path} is no scaler; copy the whole directory again")
    return TargetScaler(**value)  # type: ignore[typeddict-item]


def _check_schema(directory: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise MipsError where the model's inputs mean something else than expected."""
    differences = [
        f"{key} {found.get(key)} instead of {expected[key]}"
        for key in ("version", "atom_features", "max_hops", "num_conformers", "conformer_backend")
        if key in expected and found.get(key) != expected[key]
    ]
    known = expected["descriptors"]
    differences += [
        f"descriptor {name} {version!r} instead of {known.get(name, 'none')!r}"
        for name, version in found.get("descriptors", {}).items()
        if known.get(name) != version
    ]
    if differences:
        raise MipsError(
            f"{directory} was trained on another feature schema ({'; '.join(differences)}); "
            "train again on features made by this version"
        )


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise MipsError(f"{directory} is a file; give another name for the model directory")
    others = {path.name for path in directory.iterdir()} - FILES if directory.is_dir() else set()
    if others:
        raise MipsError(
            f"{directory} holds something else than a model ({min(others)}); give another directory"
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MipsError(f"{path} is not readable JSON; copy the whole directory again") from error
    if not isinstance(value, dict):
        raise MipsError(f"{path} is not a JSON object; copy the whole directory again")
    return value
