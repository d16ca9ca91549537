from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mips_dist.data.batch import collate
from mips_dist.data.properties import Scaler
from mips_dist.data.schema import feature_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MaskedAtomModel, PropertyModel
from mips_dist.train import fitting
from mips_dist.train.finetuning import (
    finetune_all,
    finetune_fold,
    finetune_jointly,
    inner_polymers,
    predict,
)
from mips_dist.train.fold_config import PropertyRows, load_pretrained
from tests.finetune.learnable import fold_config, labelled_rows, tiny_model

COUNT = 60


@pytest.fixture(scope="module")
def data():
    block, rows = labelled_rows(COUNT, repeats=5)
    folds = (rows.sample % 5).astype(np.int64)
    return block, rows, folds


def with_values(rows, value):
    return PropertyRows(rows.name, rows.unit, rows.sample, rows.row, value)


def test_equal_arguments_give_equal_numbers(data):
    first = finetune_fold(fold_config(), *data, fold=0, seed=3)
    again = finetune_fold(fold_config(), *data, fold=0, seed=3)
    assert again.prediction == first.prediction
    assert again.curve == first.curve
    other = finetune_fold(fold_config(), *data, fold=0, seed=4)
    assert other.prediction != first.prediction


def test_strict_does_not_read_test_labels_before_the_end(data):
    block, rows, folds = data
    test = folds == 0
    shuffled = rows.value.copy()
    shuffled[test] = np.random.default_rng(0).permutation(shuffled[test]) + 7.0
    poisoned = np.where(test, np.nan, rows.value)
    honest = finetune_fold(fold_config(), block, rows, folds, 0, 0)
    for value in (shuffled, poisoned):
        other = finetune_fold(fold_config(), block, with_values(rows, value), folds, 0, 0)
        # The weights of the chosen epoch are the same, or the predictions would differ.
        assert other.epoch == honest.epoch
        assert other.curve == honest.curve
        assert other.prediction == honest.prediction
    assert other.r2 != honest.r2


def test_paper_takes_the_epoch_that_is_best_on_the_test_fold(data):
    result = finetune_fold(fold_config(protocol="paper", num_epochs=6), *data, fold=1, seed=0)
    scores = [entry["watched_r2"] for entry in result.curve]
    # The watched rows were predicted in other batches, which costs the last bits.
    assert result.r2 == pytest.approx(max(scores), abs=1e-6)
    assert result.epoch == 1 + scores.index(max(scores))
    assert result.protocol == "paper"


def test_the_scaler_and_the_training_see_the_training_rows_only(data, monkeypatch):
    block, rows, folds = data
    seen = []
    monkeypatch.setattr(
        fitting.Scaler, "fit", classmethod(lambda _, v: seen.append(v) or Scaler(0.0, 1.0))
    )
    finetune_fold(fold_config(num_epochs=1), block, rows, folds, 2, 0)
    outer = np.flatnonzero(folds != 2)
    inner = inner_polymers(rows.sample[outer], 0.15, 0, 2)
    expected = rows.value[outer[~np.isin(rows.sample[outer], inner)]]
    assert len(seen) == 1
    assert np.array_equal(np.sort(seen[0]), np.sort(expected))


def test_the_inner_split_is_of_polymers_of_the_training_folds(data):
    _, rows, folds = data
    outer = rows.sample[folds != 0]
    inner = inner_polymers(outer, 0.15, 0, 0)
    assert set(inner) <= set(outer)
    assert len(set(inner)) == len(inner) == round(0.15 * len(set(outer)))


def test_patience_only_cuts_the_end_off(data):
    whole = finetune_fold(fold_config(num_epochs=12, patience=100), *data, fold=3, seed=0)
    cut = finetune_fold(fold_config(num_epochs=12, patience=1), *data, fold=3, seed=0)
    assert len(whole.curve) == 12
    assert cut.curve == whole.curve[: len(cut.curve)]
    assert len(cut.curve) == cut.epoch + 1 < 12
    paper = fold_config(num_epochs=12, patience=1, protocol="paper")
    assert len(finetune_fold(paper, *data, fold=3, seed=0).curve) == 12


def test_every_training_row_is_used_in_every_epoch(data, monkeypatch):
    block, rows, _ = data
    sizes, labels = [], []
    original = fitting.Training._run_step

    def counted(self, part):
        sizes.append(len(part))
        labels.append(self.weight_ET[part].sum().item())
        return original(self, part)

    monkeypatch.setattr(fitting.Training, "_run_step", counted)
    finetune_all(fold_config(), block, [rows], [2], seed=0)
    assert sum(sizes) == 2 * COUNT
    assert sum(labels) == 2 * len(rows.row) > sum(sizes)
    assert max(sizes) - min(sizes) <= 1


def test_the_gradient_is_that_of_the_rows(data):
    """Two labels of one polymer weigh twice their mean, in the loss's slope and so in training."""
    block, rows, _ = data
    value = rows.value + np.linspace(0, 5, len(rows.value))  # so that equal polymers differ
    task = fitting.Task(with_values(rows, value), np.arange(len(value)), np.arange(0))
    training = fitting.Training(fold_config(), block, [task], np.random.default_rng(0))
    batch = collate(block.select(training.sample), fitting.PACK_SIZE)
    of_rows = torch.from_numpy(training.scalers[0].to_z(value).astype(np.float32))
    error = training.model(batch)[rows.sample, 0] - of_rows
    (error**2).mean().backward()
    expected = [p.grad.clone() for p in training.model.parameters()]
    training.model.zero_grad()
    merged = (training.weight_ET * (training.model(batch) - training.z_ET) ** 2).sum()
    (merged / training.weight_ET.sum()).backward()
    for found, wanted in zip(training.model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def two(data):
    """Two properties of overlapping polymers: the first 40, and the last 30 with other values."""
    block, rows, folds = data
    first, last = np.flatnonzero(rows.sample < 40), np.flatnonzero(rows.sample >= 30)
    parts = [
        PropertyRows(name, "%", rows.sample[own], rows.row[own], scale * rows.value[own])
        for name, own, scale in (("oxygen", first, 1.0), ("minus", last, -3.0))
    ]
    return block, parts, [folds[first], folds[last]]


def test_a_joint_network_bans_the_test_polymers_from_all_properties(two, monkeypatch):
    block, parts, folds = two
    seen = []
    original = fitting.Training.__init__

    def watched(self, *arguments):
        original(self, *arguments)
        seen.append(self.sample)

    monkeypatch.setattr(fitting.Training, "__init__", watched)
    first = finetune_jointly(fold_config(), block, parts, folds, 1, 0)
    tested = np.concatenate([p.sample[f == 1] for p, f in zip(parts, folds, strict=True)])
    assert not set(seen[0]) & set(tested)
    assert [r.property for r in first] == ["oxygen", "minus"]
    # Labels of the test fold change nothing but the scores, of either property.
    changed = [
        with_values(p, np.where(f == 1, 7.0 + p.value, p.value))
        for p, f in zip(parts, folds, strict=True)
    ]
    for one, other in zip(
        first, finetune_jointly(fold_config(), block, changed, folds, 1, 0), strict=True
    ):
        assert other.prediction == one.prediction
        assert other.curve == one.curve
        assert other.r2 != one.r2


def test_a_teacher_speaks_where_a_training_polymer_has_no_label(two):
    block, parts, folds = two
    config = fold_config(teacher_weight=0.5)
    taught = [np.full(COUNT, 1e3), np.full(COUNT, -1e3)]
    tasks = [
        fitting.Task(p, np.flatnonzero(f != 1), np.arange(0), taught=t)
        for p, f, t in zip(parts, folds, taught, strict=True)
    ]
    training = fitting.Training(config, block, tasks, np.random.default_rng(0))
    plain = [replace(task, taught=None) for task in tasks]
    without = fitting.Training(config, block, plain, np.random.default_rng(0))
    has_label = without.weight_ET > 0
    assert torch.equal(training.z_ET[has_label], without.z_ET[has_label])
    assert torch.equal(training.weight_ET[has_label], without.weight_ET[has_label])
    assert (~has_label).any(0).all()
    assert (training.weight_ET[~has_label] == 0.5).all()
    for column, values in enumerate(taught):
        said = training.scalers[column].to_physical(training.z_ET[~has_label[:, column], column])
        torch.testing.assert_close(said, torch.full_like(said, values[0]))


def test_what_a_teacher_says_of_test_polymers_is_not_read(two):
    block, parts, folds = two
    config = fold_config(teacher_weight=1.0)
    tested = np.concatenate([p.sample[f == 1] for p, f in zip(parts, folds, strict=True)])
    values = [np.linspace(0, 1, COUNT), np.linspace(5, 0, COUNT)]
    hidden = [np.where(np.isin(np.arange(COUNT), tested), np.nan, v) for v in values]
    first = finetune_jointly(config, block, parts, folds, 1, 0, taught=values)
    again = finetune_jointly(config, block, parts, folds, 1, 0, taught=hidden)
    untaught = finetune_jointly(config, block, parts, folds, 1, 0)
    for one, same, other in zip(first, again, untaught, strict=True):
        assert same.prediction == one.prediction
        assert other.prediction != one.prediction


def test_each_property_of_a_joint_network_has_its_best_epoch_and_its_unit(two):
    block, parts, folds = two
    config = fold_config(num_epochs=60, patience=60, decay_fraction=0.3)
    results = finetune_jointly(config, block, parts, folds, 0, 0)
    for result in results:
        watched = [entry["watched_rmse"] for entry in result.curve]
        assert result.epoch == 1 + watched.index(min(watched))
    fitted = finetune_all(config, block, parts, [60, 50], 0)
    for rows, model in zip(parts, fitted, strict=True):
        error = predict(model, block, rows.sample) - rows.value
        assert np.sqrt((error**2).mean()) < 0.25 * rows.value.std()
    assert [model.epoch for model in fitted] == [60, 50]


def test_the_learning_rate_rises_stays_and_falls(data):
    block, rows, _ = data
    config = fold_config(num_epochs=10, warmup_fraction=0.1, decay_fraction=0.5, lr=1.0)
    task = fitting.Task(rows, np.arange(len(rows.value)), np.arange(0))
    training = fitting.Training(config, block, [task], np.random.default_rng(0))
    rates = []
    for step in range(1, training.num_steps + 1):
        training.step = step
        rates.append(training._lr())
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[4 : len(rates) // 2]) == {1.0}
    assert rates[-2] == pytest.approx(fitting.LAST_LR)
    assert rates[-1] == fitting.LAST_LR
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_it_learns_and_predicts_in_physical_units(data):
    block, rows, _ = data
    (fitted,) = finetune_all(fold_config(lr=1e-2, num_epochs=60), block, [rows], [60], seed=0)
    prediction = predict(fitted, block, rows.sample)
    error = float(np.sqrt(((prediction - rows.value) ** 2).mean()))
    assert error < 0.15 * rows.value.std()
    assert fitted.curve[-1]["train_loss"] < 0.05


def test_labels_without_meaning_give_no_score(data):
    block, rows, folds = data
    scores = []
    for fold in range(3):
        value = np.random.default_rng(fold).permutation(rows.value[:COUNT])[rows.sample]
        permuted = with_values(rows, value)
        scores.append(finetune_fold(fold_config(), block, permuted, folds, fold, 0).r2)
    assert np.mean(scores) < 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_label_that_is_not_finite_fails_clearly(data, bad):
    block, rows, folds = data
    value = np.where(folds == 1, bad, rows.value)
    with pytest.raises(MipsError, match="oxygen fold 0 seed 0: a label is NaN"):
        finetune_fold(fold_config(), block, with_values(rows, value), folds, 0, 0)


def test_a_loss_that_is_not_finite_fails_clearly(data):
    with pytest.raises(MipsError, match="the loss is not finite in epoch 1; lower lr"):
        finetune_fold(fold_config(lr=1e30, warmup_fraction=0.0), *data, fold=0, seed=0)


@pytest.fixture
def pretrained(tmp_path):
    model = MaskedAtomModel(tiny_model())
    save_bundle(
        tmp_path / "pretrained", model, feature_schema=feature_schema(2, []), metrics={},
        trained_on="nothing",
    )  # fmt: skip
    return tmp_path / "pretrained", model


def test_training_starts_from_the_pretrained_weights(pretrained):
    folder, model = pretrained
    start = fitting._initial_model(fold_config(pretrained=str(folder)), 1)
    saved, loaded = model.encoder.state_dict(), start.encoder.state_dict()
    assert all((saved[name] == loaded[name]).all() for name in saved)


def test_another_model_or_a_finished_one_is_refused(pretrained, tmp_path):
    folder, _ = pretrained
    config = fold_config(pretrained=str(folder))
    config.model.hidden_dim = 32
    with pytest.raises(MipsError, match=r"is another model; add model.hidden_dim=16"):
        load_pretrained(config)
    config.model.hidden_dim, config.model.dropout = 16, 0.3
    assert load_pretrained(config).config.dropout == 0.3
    # Pre-training knows no other head than that of two layers, so it is no difference.
    config.model.head = "linear"
    assert fitting._initial_model(config, 1).head.hidden is None
    scaler = {"property": "p", "unit": "", "mean": 0.0, "std": 1.0}
    save_bundle(
        tmp_path / "finished", PropertyModel(tiny_model()), feature_schema=feature_schema(2, []),
        metrics={}, trained_on="nothing", scaler=scaler,
    )  # fmt: skip
    with pytest.raises(MipsError, match="give a pre-trained one"):
        load_pretrained(fold_config(pretrained=str(tmp_path / "finished")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "best"},
        {"lr": 0.0},
        {"num_epochs": 0},
        {"ema_decay": 1.0},
        {"decay_fraction": 1.0},
        {"inner_fraction": 0},
    ],
)
def test_wrong_values_name_their_key(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        fold_config(**wrong)
