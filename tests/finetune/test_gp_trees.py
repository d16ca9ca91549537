"""`gp-trees` and the ensemble in a study: no label of a test polymer is seen, the source's too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mips_dist.errors import MipsError
from mips_dist.train.cells import ensemble_results, run_cells
from mips_dist.train.ensemble import NETWORK_SHARE
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import NETWORK, Cell, FoldResult, regression_scores
from mips_dist.train.study import Study, load_study, read_sets
from mips_dist.train.study_chains import SOURCE_PROPERTY, load_chains
from tests.finetune.learnable import label, labelled_set, tiny_model, write_csv
from tests.shard_folder import polymers, write_shards

COUNT = 40


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    names = polymers(COUNT)
    rows = [[p, label(p)] for p in names] + [[names[0].replace("*", "[*]"), label(names[0]) + 1]]
    config = FinetuneConfig(
        model=tiny_model(),
        input=str(write_csv(folder / "own.csv", ["psmiles", "oxygen"], rows)),
        targets=["oxygen"],
        baselines=["mean", "gp-trees"],
        shards=str(write_shards(folder / "shards", COUNT)),
        run_dir=str(folder / "run"),
        num_folds=3,
    )
    Path(config.run_dir).mkdir()
    return load_study(config, *read_sets(config))


def cell(fold: int) -> Cell:
    return Cell("gp-trees", "oxygen", fold, 0, "strict")


def test_it_learns_and_gives_the_same_number_again(study: Study) -> None:
    first = run_cells(study, [cell(1)])[0]
    again = run_cells(study, [cell(1)])[0]
    assert first.r2 > 0.8
    assert (again.r2, again.prediction) == (first.r2, first.prediction)
    again = load_study(study.config, *read_sets(study.config))  # features from the file
    assert run_cells(again, [cell(1)])[0].prediction == first.prediction


def test_gp_trees_xtb_reads_what_the_shards_hold_of_xtb(study: Study) -> None:
    """A descriptor that is the label itself, but for two polymers that have none, is found."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(study.block), 3)).astype(np.float16)
    has = np.arange(len(values)) > 1
    block = replace(
        study.block,
        descriptors=study.block.descriptors | {"xtb": values},
        descriptor_valid=study.block.descriptor_valid | {"xtb": has},
    )
    rows = study.rows["oxygen"]
    rows = replace(rows, value=values[rows.sample, 1].astype(float) + 5.0)
    told = replace(study, block=block, rows={"oxygen": rows})
    without = run_cells(told, [cell(1)])[0]
    known = run_cells(told, [cell(1)._replace(model="gp-trees-xtb")])[0]
    assert known.model == "gp-trees-xtb"
    assert known.r2 > 0.5 > without.r2
    told.block.descriptors["xtb"][:] = 0
    assert run_cells(told, [cell(1)._replace(model="gp-trees-xtb")])[0].r2 < 0.5


def test_a_study_of_gp_trees_xtb_makes_its_shards_with_xtb(tmp_path: Path) -> None:
    names = polymers(6)
    path = write_csv(tmp_path / "own.csv", ["psmiles", "x"], [[p, label(p)] for p in names])
    config = FinetuneConfig(
        model=tiny_model(),
        input=str(path),
        targets=["x"],
        baselines=["gp-trees-xtb"],
        run_dir=str(tmp_path / "run"),
        num_folds=2,
        num_workers=1,
    )
    Path(config.run_dir).mkdir()
    made = load_study(config, *read_sets(config))
    assert made.block.descriptor_valid["xtb"].all()
    assert made.chains is not None
    assert (
        made.chains.with_xtb(made.block).features.xtb.shape == made.block.descriptors["xtb"].shape
    )
    with pytest.raises(MipsError, match="lacks xtb; give another run_dir, or make shards with"):
        load_study(replace(config, shards=str(write_shards(tmp_path / "s", 6))), *read_sets(config))


def test_no_label_of_the_test_fold_is_read(study: Study) -> None:
    rows = study.rows["oxygen"]
    hidden = np.where(study.folds["oxygen"] == 1, 1e9, rows.value)
    blind = replace(study, rows={"oxygen": replace(rows, value=hidden)})
    assert run_cells(blind, [cell(1)])[0].prediction == run_cells(study, [cell(1)])[0].prediction
    assert run_cells(blind, [cell(0)])[0].prediction != run_cells(study, [cell(0)])[0].prediction


def test_the_teacher_of_a_joint_network_sees_no_label_of_the_test_fold(
    study: Study, tmp_path: Path
) -> None:
    names = polymers(COUNT)
    values = [
        [f"{label(p):.6f}" if i < 30 else "", f"{-label(p):.6f}" if i > 9 else ""]
        for i, p in enumerate(names)
    ]
    csv = write_csv(
        tmp_path / "two.csv",
        ["psmiles", "a", "b"],
        [[p, *own] for p, own in zip(names, values, strict=True)],
    )
    config = replace(
        study.config,
        input=str(csv),
        targets=["a", "b"],
        joint=True,
        teacher_weight=1.0,
        num_epochs=2,
        baselines=["mean"],
        run_dir=str(tmp_path / "run"),
    )
    Path(config.run_dir).mkdir()
    two = load_study(config, *read_sets(config))
    cells = [Cell(NETWORK, name, 1, 0, "strict") for name in ("a", "b")]
    hidden = {
        name: replace(rows, value=np.where(two.folds[name] == 1, 1e9, rows.value))
        for name, rows in two.rows.items()
    }
    seen = run_cells(two, cells)
    blind = run_cells(replace(two, rows=hidden), cells)
    alone = run_cells(replace(two, config=replace(config, teacher_weight=0.0)), cells)
    for one, same, other in zip(seen, blind, alone, strict=True):
        assert same.prediction == one.prediction
        assert other.prediction != one.prediction


def test_the_source_shows_no_polymer_of_the_test_fold(tmp_path: Path) -> None:
    names = polymers(60)
    source = labelled_set(SOURCE_PROPERTY, names)
    target = labelled_set("eea", names[:30])
    fold = np.arange(60) % 3
    folds = [fold, fold[:30]]

    def predicted(values: np.ndarray, test_fold: int) -> list[float]:
        sets = [replace(source, value=values), target]
        chains = load_chains(tmp_path, sets, folds, ["eea"])
        assert chains.source is not None
        train = [i for i in range(30) if fold[i] != test_fold]
        model = chains.fit("eea", [names[i] for i in train], target.value[train], test_fold, 0)
        assert model.source is not None
        return model.predict(chains.features).tolist()

    changed = np.where(fold == 1, 1e6, source.value)
    assert predicted(changed, 1) == predicted(source.value, 1)
    assert predicted(changed, 0) != predicted(source.value, 0)


def test_the_ensemble_is_the_mean_of_its_members_where_all_are_there(study: Study) -> None:
    rng = np.random.default_rng(0)
    config = replace(study.config, seeds=[0, 5])
    study = replace(study, config=config)
    value, fold = study.rows["oxygen"].value, study.folds["oxygen"]
    results: dict[Cell, FoldResult] = {}
    for model, seed, test_fold in [
        *(("mips", s, f) for s in (0, 5) for f in (0, 1)),
        *(("gp-trees", 0, f) for f in (0, 2)),
    ]:
        truth = value[fold == test_fold]
        prediction = truth + rng.normal(size=len(truth))
        key = Cell(model, "oxygen", test_fold, seed, "strict")
        results[key] = FoldResult(
            **key._asdict(),
            **regression_scores(truth, prediction)._asdict(),
            unit="%",
            num_train=9,
            seconds=1.0,
            prediction=prediction.tolist(),
        )
    (only,) = ensemble_results(study, results)
    assert only.cell() == Cell("mips-ensemble", "oxygen", 0, 0, "strict")
    # Networks of the other protocol make an ensemble of that one, with the same gp-trees.
    paper = {
        key._replace(protocol="paper"): replace(result, protocol="paper")
        for key, result in results.items()
        if key.model == "mips"
    }
    both = ensemble_results(study, results | paper)
    assert [r.protocol for r in both] == ["strict", "paper"]
    assert both[1].prediction == only.prediction
    of = {key[0:4:3]: np.array(r.prediction) for key, r in results.items() if key.fold == 0}
    network = (of["mips", 0] + of["mips", 5]) / 2
    expected = NETWORK_SHARE * network + (1 - NETWORK_SHARE) * of["gp-trees", 0]
    np.testing.assert_allclose(only.prediction, expected)
    assert only.seconds == 3.0
    assert only.rmse < min(r.rmse for key, r in results.items() if key.fold == 0)
