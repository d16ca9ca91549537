"""A `ChainModel` as named arrays in one packed safetensors file, without any P-SMILES.

The counts of environments, nearly all 0, are kept as the places and values of the others.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mips_dist.chem.chain_features import NUM_BINS
from mips_dist.errors import MipsError
from mips_dist.model.chain_model import ChainModel
from mips_dist.model.forest import Forest
from mips_dist.model.kernel import Block, Counts, GaussianProcess

# A few hundred times the largest of the eight: a small file must not fill the memory.
MAX_BYTES = 1 << 30

DAMAGE = (
    *(SafetensorError, KeyError, ValueError, IndexError, TypeError, OverflowError),
    *(OSError, EOFError, MemoryError, zlib.error),
)

Arrays = dict[str, np.ndarray]

_SCALARS = ("mean", "std", "amplitude", "amplitude_of_square", "linear")


def save_chain_model(model: ChainModel, path: Path) -> None:
    """Write the file; what `load_chain_model` reads from it predicts the same, bit for bit."""
    arrays: Arrays = {"columns": model.columns.astype(np.int16), "fill": model.fill}
    forest = model.forest
    skip = np.where(forest.column >= 0, forest.right - np.arange(len(forest.right)), 0)
    assert skip.max(initial=0) <= np.iinfo(np.uint16).max, "a tree is too large for its file"
    arrays |= {f"forest.{name}": getattr(forest, name) for name in ("root", "column", "threshold")}
    arrays["forest.skip"] = skip.astype(np.uint16)
    arrays |= _process_arrays(model.process, "process.")
    if model.source is not None:
        arrays |= _process_arrays(model.source, "source.")
    write_arrays(arrays, path)


def load_chain_model(path: Path) -> ChainModel:
    """Read the file.

    Raises
    ------
    MipsError
        It is damaged, or is no chain model.
    """
    try:
        arrays = read_arrays(path)
        return ChainModel(
            process=_process(arrays, "process."),
            forest=_forest(arrays),
            columns=arrays["columns"].astype(np.int64),
            fill=arrays["fill"],
            source=_process(arrays, "source.") if "source.weights" in arrays else None,
        )
    except DAMAGE as error:
        raise MipsError(f"{path} is damaged; copy the whole directory again") from error


def write_arrays(arrays: Arrays, path: Path) -> None:
    """Write named arrays as a packed safetensors file; equal arrays give equal bytes."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    path.write_bytes(gzip.compress(content, mtime=0))


def read_arrays(path: Path) -> Arrays:
    """Read what `write_arrays` wrote; raises one of `DAMAGE` where the file is none."""
    with gzip.open(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError("unpacks to more than any model has")
    return load(content)


def environment_arrays(environments: Counts) -> Arrays:
    """Return (R, bins) counts of environments as places and values of those that are not 0."""
    row, column = environments.nonzero()
    return {
        "environments.number": np.bincount(row, minlength=len(environments)).astype(np.int32),
        "environments.bin": column.astype(np.int16),
        "environments.count": environments[row, column],
    }


def environments_of(arrays: Arrays) -> Counts:
    """Return the counts that `environment_arrays` took apart."""
    number = arrays["environments.number"]
    # Before so many rows are made of them.
    if (number < 0).any() or int(number.sum(dtype=np.int64)) != len(arrays["environments.bin"]):
        raise ValueError("the numbers of environments contradict each other")
    environments = np.zeros((len(number), NUM_BINS), np.uint8)
    row = np.repeat(np.arange(len(number)), number)
    environments[row, arrays["environments.bin"]] = arrays["environments.count"]
    return environments


def _forest(arrays: Arrays) -> Forest:
    root, column = arrays["forest.root"], arrays["forest.column"]
    skip = arrays["forest.skip"].astype(np.int32)
    # A path that stays where it is would be followed for ever.
    if not (skip[column >= 0] > 0).all():
        raise ValueError("a tree leads back")
    right = np.where(column >= 0, skip + np.arange(len(skip), dtype=np.int32), 0)
    return Forest(root, column, arrays["forest.threshold"], right.astype(np.int32))


def _process_arrays(process: GaussianProcess, prefix: str) -> Arrays:
    arrays: Arrays = {
        "scalars": np.array([getattr(process, name) for name in _SCALARS]),
        "weights": process.weights,
        **environment_arrays(process.environments),
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
        environments=environments_of(own),
        features={name: own[f"blocks.{name}.rows"] for name in names},
        weights=own["weights"],
    )
