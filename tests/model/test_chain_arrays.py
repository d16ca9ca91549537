"""A chain model's file: the same predictions from it, bit for bit; damaged ones are refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from mips_dist.chem.chain_features import ChainFeatures, chain_features
from mips_dist.errors import MipsError
from mips_dist.model.chain_arrays import load_chain_model, save_chain_model
from mips_dist.model.chain_model import ChainModel
from mips_dist.train.gp_trees import ChainRows, fit_chain_model, fit_source
from tests.polymers import CORNER_CASES

CANONICALS = sorted(set(CORNER_CASES.values()))


@pytest.fixture(scope="module")
def chain() -> ChainFeatures:
    return chain_features(CANONICALS)


@pytest.fixture(scope="module")
def model(chain: ChainFeatures) -> ChainModel:
    every = np.arange(len(CANONICALS))
    value = chain.composition[:, 0] + 0.1 * chain.topology[:, 0].astype(np.float64)
    source = fit_source(chain, ChainRows(every[::2], np.sin(value[::2])), seed=0)
    return fit_chain_model(chain, ChainRows(every[5:], value[5:]), source, seed=0)


def test_predictions_are_the_same_from_the_file(
    model: ChainModel, chain: ChainFeatures, tmp_path: Path
) -> None:
    save_chain_model(model, tmp_path / "m")
    read = load_chain_model(tmp_path / "m")
    expected = model.predict(chain)
    np.testing.assert_array_equal(read.predict(chain), expected)
    assert np.ptp(expected) > 0.1
    content = gzip.decompress((tmp_path / "m").read_bytes())
    assert not any(c.encode() in content for c in CANONICALS if len(c) > 6)


def test_the_source_matters(model: ChainModel, chain: ChainFeatures) -> None:
    assert model.source is not None
    known = model.source.predict(
        chain.environments, {n: getattr(chain, n) for n in model.source.blocks}
    )
    assert np.ptp(known) > 0.01


@pytest.mark.parametrize("damage", ["truncated", "without weights", "a tree that leads back"])
def test_damaged_files_are_refused(damage: str, model: ChainModel, tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_chain_model(model, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        arrays = load(gzip.decompress(path.read_bytes()))
        if damage == "without weights":
            del arrays["process.weights"]
        else:
            split = int(np.flatnonzero(arrays["forest.column"] >= 0)[3])
            arrays["forest.skip"][split] = 0
        path.write_bytes(gzip.compress(save(arrays)))
    with pytest.raises(MipsError, match="damaged"):
        load_chain_model(path)
