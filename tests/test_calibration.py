"""Intervals that hold what they promise on held-out folds, and the distance to what was learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mips_dist.chem.chain_features import chain_environments, chain_features
from mips_dist.data.schema import feature_schema, known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import is_complete, load_bundle, save_bundle
from mips_dist.model.calibration import Calibration
from mips_dist.train.calibrate import HeldOut, calibrate
from mips_dist.use.predictor import Predictor
from tests.model.hand import property_model
from tests.shard_folder import polymers

COUNT = 150


def held_out(scale: float = 1.0) -> HeldOut:
    """Errors three times as large for every second kind of polymer; every fifth has two rows."""
    rng = np.random.default_rng(3)
    names = polymers(COUNT)
    polymer = np.sort(np.concatenate([np.arange(COUNT), np.arange(0, COUNT, 5)]))
    spread = np.array([3.0 if "O" in name else 1.0 for name in names])[polymer]
    value = rng.normal(size=len(polymer))
    error = spread * rng.normal(size=len(polymer))
    return HeldOut(
        environments=chain_environments(names),
        fold=rng.permutation(COUNT) % 5,
        polymer=polymer,
        value=scale * value,
        prediction=scale * (value + error),
    )


def calibrated_model(directory: Path, name: str) -> Path:
    model = property_model(descriptors=[])
    save_bundle(
        directory,
        model,
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="A test.",
        scaler={"property": name, "unit": "K", "mean": 4.5, "std": 1.5},
        calibration=calibrate(held_out())[0],
    )
    return directory


def test_nine_in_ten_are_covered_and_hard_polymers_have_wide_intervals() -> None:
    data = held_out()
    calibration, coverage = calibrate(data)
    assert 0.84 <= coverage.share <= 0.97
    names = polymers(COUNT)
    widths = {True: [], False: []}
    for name, environments in zip(names, data.environments, strict=True):
        found = calibration.reliability(environments[None], 1.0)
        assert found.lower < 1.0 < found.upper
        assert found.upper - 1.0 == pytest.approx(1.0 - found.lower)
        # It was trained on this one.
        assert (found.distance, found.in_domain) == (0.0, True)
        widths["O" in name].append(found.upper - found.lower)
    assert np.mean(widths[True]) > 1.2 * np.mean(widths[False])


def test_widths_have_the_unit_of_the_errors() -> None:
    (_, one), (_, ten) = calibrate(held_out()), calibrate(held_out(10.0))
    assert ten.share == one.share
    assert ten.mean_width == pytest.approx(10 * one.mean_width)


def test_no_error_of_a_fold_widens_the_intervals_that_it_is_scored_by() -> None:
    data = held_out()
    is_wild = data.fold[data.polymer] == 2
    wild = data._replace(prediction=np.where(is_wild, data.value + 1e6, data.prediction))
    _, coverage = calibrate(wild)
    assert coverage.share <= 1.0 - is_wild.mean()


def test_strange_polymers_are_far_and_out_of_the_domain() -> None:
    calibration, _ = calibrate(held_out())
    strange = calibration.reliability(chain_environments(["*[Si](Br)(I)[Si](Br)(I)P*"]), 0.0)
    assert strange.distance > calibration.max_distance
    assert not strange.in_domain
    everything = chain_features(["*CC(*)C"]).environments
    assert (chain_environments(["*CC(*)C"]) == everything).all()


def test_a_bundle_keeps_every_bit_and_refuses_another_file(tmp_path: Path) -> None:
    directory = calibrated_model(tmp_path / "model", "tg")
    calibration = calibrate(held_out())[0]
    bundle = load_bundle(directory, known_schema())
    assert isinstance(bundle.calibration, Calibration)
    environments = chain_environments(["*CC(*)O"])
    assert bundle.calibration.reliability(environments, 2.0) == calibration.reliability(
        environments, 2.0
    )
    first, again = Predictor.open([directory]).predict(["*CC(*)C", "[*]C(C)C[*]"])
    assert first.values == again.values
    own = first.values["tg"]
    assert own.lower is not None
    assert own.upper is not None
    assert own.lower < own.value < own.upper
    assert "interval that held 90 %" in (directory / "README.md").read_text()
    save_bundle(
        tmp_path / "without",
        property_model(descriptors=[]),
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="A test.",
        scaler={"property": "tg", "unit": "K", "mean": 4.5, "std": 1.5},
    )
    (plain,) = Predictor.open([tmp_path / "without"]).predict(["*CC(*)C"])
    assert plain.values["tg"] == replace(own, lower=None, upper=None, distance=None, in_domain=None)

    path = directory / "calibration.safetensors.gz"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert not is_complete(directory)
    with pytest.raises(MipsError, match="sha256 differs"):
        load_bundle(directory, known_schema())
    path.unlink()
    with pytest.raises(MipsError, match="lacks calibration"):
        load_bundle(directory, known_schema())
