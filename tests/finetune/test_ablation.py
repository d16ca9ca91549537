"""Ablations: the plan is consistent, runs share features, tables put published rows beside."""

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mips_dist.config import compose
from mips_dist.errors import UsageError
from mips_dist.train.ablation import (
    ablation_rows,
    ablation_table,
    describe_size,
    read_ablation,
    run_configs,
    write_ablation,
)
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.study import load_study, read_sets
from mips_dist.train.tables import ALL_SETS, Summary
from tests.finetune.learnable import label, tiny_model, write_csv
from tests.shard_folder import polymers, write_shards


def shipped(*overrides: str) -> tuple[FinetuneConfig, dict[str, FinetuneConfig]]:
    config = compose(FinetuneConfig, "finetune", ["study=ablation", "run_dir=abl", *overrides])
    return config, run_configs(config, read_ablation())


def test_every_shipped_run_is_a_study_of_its_own_on_development_folds():
    config, configs = shipped("num_epochs=3", "properties=[xc]")
    assert len({c.run_dir for c in configs.values()}) == len(configs)
    assert {c.fold_seed for c in configs.values()} == {20}  # the table's folds are of seed 1
    assert not any(c.ablation or c.save_model or c.baselines for c in configs.values())
    assert {c.num_epochs for c in configs.values()} == {3}
    assert {tuple(c.properties) for c in configs.values()} == {("xc",)}
    assert {c.model.max_hops for c in configs.values()} == {1, 2, 3, 4, 5}
    assert {c.star_strategy for c in configs.values()} > {"keep", "remove", "substitute", "link"}
    assert "1 seed, 3 epochs at most" in describe_size(config)
    # Conformers are made once: whoever reads them reads those of one run.
    with_conformers = [c for c in configs.values() if "atom_pair_3d" in c.model.descriptors]
    assert len({c.shards or f"{c.run_dir}/shards" for c in with_conformers}) == 1


def test_every_component_has_a_plan_that_compares_something():
    plan = read_ablation()
    for component in plan.components:
        runs = list(component.variants.values())
        assert len(set(runs)) == len(runs) >= 2
    published = {c.name for c in plan.components if c.published}
    assert published == {"star strategy", "backbone embedding", "descriptor groups"}


def test_a_plan_that_names_no_run_is_one_line(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("runs: {a: {}}\ncomponents: [{name: x, variants: {v: b}}]\n")
    with pytest.raises(UsageError, match="component x has no run 'b'"):
        read_ablation(path)
    path.write_text("runs: {a: {}}\ncolour: red\n")
    with pytest.raises(UsageError, match="colour"):
        read_ablation(path)


def summary(name: str, r2: float, protocol: str = "strict", model: str = "mips") -> Summary:
    return Summary(
        property=name, model=model, protocol=protocol, unit="eV", r2=r2, r2_sd=0.01, rmse=0.5,
        rmse_sd=math.nan, num_cells=3,
    )  # fmt: skip


def test_tables_and_plots_have_every_variant_beside_the_published_one(tmp_path):
    plan = read_ablation()
    found = {
        "graph": [
            summary("egb", 0.9),
            summary("egb", 0.99, model="mean"),
            summary("egb", 0.95, protocol="paper"),
            summary("xc", 0.5),
            *(summary(name, 0.625) for name in ("eea", "ei", "eps", "nc", "eat")),
            summary(ALL_SETS, 0.7),
        ],
        "graph-no-backbone": [summary("egb", 0.8), summary("xc", math.nan)],
    }
    rows = ablation_rows(plan, found, "strict")
    backbone = [r for r in rows if r["component"] == "backbone embedding"]
    assert [(r["variant"], r["property"], r["r2"], r["published"]) for r in backbone[:1]] == [
        ("off", "egb", 0.8, 0.932)
    ]
    on = {r["property"]: (r["r2"], r["published"]) for r in backbone if r["variant"] == "on"}
    assert on["egb"] == (0.9, 0.934)
    # The published mean is that of the same sets.
    published = (0.934 + 0.933 + 0.836 + 0.457 + 0.806 + 0.873 + 0.988) / 7
    assert on[ALL_SETS] == (0.7, pytest.approx(published))
    printed = Console(width=80, record=True, file=io.StringIO())
    printed.print(ablation_table(rows, plan, "three folds"))
    lines = printed.export_text().splitlines()
    assert any(line.split() == ["on", "0.900", "0.500", *["0.625"] * 5, "0.700"] for line in lines)
    assert any(line.split()[:2] == ["published", "0.932"] for line in lines)
    plots = write_ablation(rows, plan, "three folds", tmp_path)
    read = json.loads((tmp_path / "ablation.json").read_text())
    assert len(read) == len(rows)
    assert set(read[0]) >= {"component", "variant", "property", "r2", "r2_sd", "published"}
    assert None in [r["r2"] for r in read]
    with open(tmp_path / "ablation.csv") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert {p.name for p in plots} >= {"ablation-radius.svg", "ablation-star_strategy.svg"}
    for plot in plots:
        text = "".join(ElementTree.parse(plot).getroot().itertext())
        assert "three folds" in text


def test_star_strategies_change_the_graphs_and_nothing_else(tmp_path):
    rows = [[p, label(p)] for p in polymers(30)]
    csv_file = write_csv(tmp_path / "own.csv", ["psmiles", "oxygen"], rows)
    config = FinetuneConfig(
        model=tiny_model(), input=str(csv_file), targets=["oxygen"], save_model=False,
        shards=str(write_shards(tmp_path / "shards", 30)),
    )  # fmt: skip
    studies = {}
    for strategy in ("link", "keep", "remove", "substitute"):
        own = replace(config, star_strategy=strategy, run_dir=str(tmp_path / strategy))
        Path(own.run_dir).mkdir()
        studies[strategy] = load_study(own, *read_sets(own))
    atoms = {name: study.block.num_atoms for name, study in studies.items()}
    assert (atoms["keep"] == atoms["link"] + 2).all()
    assert (atoms["remove"] == atoms["link"]).all()
    assert (atoms["substitute"] == atoms["link"] + 2).all()
    assert len(studies["remove"].block.pair_hops) < len(studies["link"].block.pair_hops)
    for study in studies.values():
        assert study.block.psmiles == studies["link"].block.psmiles
        assert np.array_equal(study.rows["oxygen"].value, studies["link"].rows["oxygen"].value)
    with pytest.raises(ValueError, match="star_strategy=keep needs save_model=false"):
        FinetuneConfig(star_strategy="keep")
