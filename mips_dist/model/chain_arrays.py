"""A `ChainModel` as named arrays in one safetensors file, without any P-SMILES.

The counts of environments, nearly all 0, are kept as the places and values of the others.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mips_dist.chem.chain_features import NUM_BINS
from mips_dist.errors import MipsError
from mips_dist.model.chain_model import ChainModel
from mips_dist.model.forest import Forest
from mips_dist.model.kernel import Block, GaussianProcess

Arrays = dict[str, np.ndarray]

_SCALARS = ("mean", "std", "amplitude", "amplitude_of_square", "linear")


def save_chain_model(model: ChainModel, path: Path) -> None:
    """Write the file; what `load_chain_model` reads from it predicts the same, bit for bit."""
    arrays: Arrays = {"columns": model.columns.astype(np.int16), "fill": model.fill}
    arrays |= {f"forest.{f.name}": getattr(model.forest, f.name) for f in fields(Forest)}
    arrays |= _process_arrays(model.process, "process.")
    if model.source is not None:
        arrays |= _process_arrays(model.source, "source.")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    path.chmod(0o644)  # safetensors makes it private; the other files are not


def load_chain_model(path: Path) -> ChainModel:
    """Read the file.

    Raises
    ------
    MipsError
        It is damaged, or is no chain model.
    """
    try:
        arrays = load_file(path)
        return ChainModel(
            process=_process(arrays, "process."),
            forest=_forest(arrays),
            columns=arrays["columns"].astype(np.int64),
            fill=arrays["fill"],
            source=_process(arrays, "source.") if "source.weights" in arrays else None,
        )
    except (SafetensorError, KeyError, ValueError, IndexError, OSError) as error:
        raise MipsError(f"{path} is damaged; copy the whole directory again") from error


def _forest(arrays: Arrays) -> Forest:
    forest = Forest(**{f.name: arrays[f"forest.{f.name}"] for f in fields(Forest)})
    # A path that led back would be followed for ever.
    is_split = forest.column >= 0
    if not (forest.right[is_split] > np.flatnonzero(is_split)).all():
        raise ValueError("a tree leads back")
    return forest


def _process_arrays(process: GaussianProcess, prefix: str) -> Arrays:
    row, column = process.environments.nonzero()
    arrays: Arrays = {
        "scalars": np.array([getattr(process, name) for name in _SCALARS]),
        "weights": process.weights,
        "environments.number": np.bincount(row, minlength=len(process.weights)).astype(np.int32),
        "environments.bin": column.astype(np.int16),
        "environments.count": process.environments[row, column],
    }
    for name, block in process.blocks.items():
        arrays |= {
            f"blocks.{name}.columns": block.columns.astype(np.int16),
            f"blocks.{name}.centre": block.centre,
            f"blocks.{name}.scale": block.scale,
            f"blocks.{name}.terms": np.array([block.amplitude, block.length]),
            f"blocks.{name}.rows": process.features[name],
        }
    return {prefix + name: array for name, array in arrays.items()}


def _process(arrays: Arrays, prefix: str) -> GaussianProcess:
    own: dict[str, Any] = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    names = [name.split(".")[1] for name in own if name.endswith(".terms")]
    number = own["environments.number"]
    environments = np.zeros((len(number), NUM_BINS), np.uint8)
    row = np.repeat(np.arange(len(number)), number)
    environments[row, own["environments.bin"]] = own["environments.count"]
    blocks = {
        name: Block(
            own[f"blocks.{name}.columns"].astype(np.int64),
            own[f"blocks.{name}.centre"],
            own[f"blocks.{name}.scale"],
            *own[f"blocks.{name}.terms"].tolist(),
        )
        for name in names
    }
    return GaussianProcess(
        **dict(zip(_SCALARS, own["scalars"].tolist(), strict=True)),
        blocks=blocks,
        environments=environments,
        features={name: own[f"blocks.{name}.rows"] for name in names},
        weights=own["weights"],
    )
