"""Ablations: which studies they are made of, and their tables and plots side by side."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.table import Table
from rich.text import Text

from mips_dist.config import configs_dir, replaced
from mips_dist.data.files import write_atomically
from mips_dist.errors import UsageError
from mips_dist.train.ablation_plot import draw_component
from mips_dist.train.finetune_config import FinetuneConfig, slug
from mips_dist.train.results import NETWORK
from mips_dist.train.tables import ALL_SETS, Summary

ABLATION_FILE = "ablation.yaml"


@dataclass(kw_only=True, slots=True)
class Component:
    """One thing that is varied.

    Attributes
    ----------
    about
        On what model, and where published numbers are from.
    variants
        Name of a variant -> the run that it is.
    published
        Name of a variant -> property -> R2.
    """

    name: str
    about: str = ""
    variants: dict[str, str] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Ablation:
    """All runs, by name with the keys that differ from the common ones, and the components."""

    runs: dict[str, Any] = field(default_factory=dict)
    components: list[Component] = field(default_factory=list)


def read_ablation(path: Path | None = None) -> Ablation:
    """Read the shipped plan, or another; UsageError where it is not consistent."""
    path = path or configs_dir() / ABLATION_FILE
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Ablation), OmegaConf.load(path))
        plan = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plan, Ablation)
    for component in plan.components:
        for run in component.variants.values():
            if run not in plan.runs:
                raise UsageError(f"{path}: component {component.name} has no run '{run}'")
        for variant in component.published:
            if variant not in component.variants:
                raise UsageError(f"{path}: component {component.name} has no '{variant}'")
    return plan


def run_configs(config: FinetuneConfig, plan: Ablation) -> dict[str, FinetuneConfig]:
    """Return the configuration of every run; keys of the command line hold for all of them.

    A run reads the shards of an earlier one that have its features, so conformers are made once.
    """
    configs: dict[str, FinetuneConfig] = {}
    for name, keys in plan.runs.items():
        own = {key: value for key, value in keys.items() if key not in config.given}
        run = replaced(config, own | {"ablation": False})
        run.run_dir = str(Path(config.run_dir) / name)
        if config.shards is None:
            sources = [c for c in configs.values() if c.shards is None and _has_features(c, run)]
            run.shards = str(Path(sources[0].run_dir) / "shards") if sources else None
        configs[name] = run
    return configs


def _has_features(source: FinetuneConfig, run: FinetuneConfig) -> bool:
    """Tell whether the shards of one run serve another."""
    return (
        source.model.max_hops == run.model.max_hops
        and set(source.model.descriptors) >= set(run.model.descriptors)
        and set(source.properties) >= set(run.properties)
    )


def ablation_rows(
    plan: Ablation, found: Mapping[str, Sequence[Summary]], protocol: str
) -> list[dict[str, Any]]:
    """Return one row for each component, variant and property that was run.

    Parameters
    ----------
    found
        Summaries of the runs that are finished, by name.
    protocol
        That of the runs.
    """
    rows: list[dict[str, Any]] = []
    for component in plan.components:
        for variant, run in component.variants.items():
            for summary in found.get(run, ()):
                if (summary.model, summary.protocol) != (NETWORK, protocol):
                    continue
                published = component.published.get(variant, {})
                rows.append(
                    {
                        "component": component.name,
                        "variant": variant,
                        "property": summary.property,
                        "r2": summary.r2,
                        "r2_sd": summary.r2_sd,
                        "rmse": summary.rmse,
                        "num_cells": summary.num_cells,
                        "protocol": summary.protocol,
                        "published": published.get(summary.property),
                    }
                )
                if summary.property == ALL_SETS and published:
                    own = [s.property for s in found[run] if s.property in published]
                    mean = sum(published[name] for name in dict.fromkeys(own))
                    rows[-1]["published"] = mean / len(dict.fromkeys(own))
    return rows


def describe_size(config: FinetuneConfig) -> str:
    """Say in words how large the studies of an ablation are."""
    model = config.model
    return (
        f"{len(config.properties)} sets, {config.num_folds} folds (fold_seed {config.fold_seed}), "
        f"{len(config.seeds)} seed, {config.num_epochs} epochs at most, {model.num_layers} layers "
        f"of width {model.hidden_dim}; one number is that of few polymers: differences below the "
        "SD over folds say nothing"
    )


def write_ablation(
    rows: Sequence[dict[str, Any]], plan: Ablation, about: str, folder: Path
) -> list[Path]:
    """Write ablation.csv, ablation.json and a plot for each component; return the plots."""
    clean = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]
    write_atomically(folder / "ablation.json", json.dumps(clean, indent=1) + "\n")
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(clean)
    write_atomically(folder / "ablation.csv", text.getvalue())
    plots = []
    for component in plan.components:
        own = [row for row in clean if row["component"] == component.name]
        if own:
            plots.append(folder / f"ablation-{slug(component.name)}.svg")
            write_atomically(plots[-1], draw_component(component.name, component.about, own, about))
    return plots


def ablation_table(rows: Sequence[dict[str, Any]], plan: Ablation, about: str) -> Table:
    """Lay R2 out for a terminal: variants by properties, published numbers below ours."""
    names = list(dict.fromkeys(row["property"] for row in rows))
    names = [name for name in names if name != ALL_SETS] + [ALL_SETS] * (ALL_SETS in names)
    # 80 columns wide at most, as the terminal of a log has.
    table = Table(
        caption=f"Mean R2 over folds: {about}.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("component", overflow="fold", min_width=18)
    for name in names:
        table.add_column("mean" if name == ALL_SETS else name, justify="right", no_wrap=True)
    for component in plan.components:
        own = [row for row in rows if row["component"] == component.name]
        if own:
            table.add_row(Text(component.name, style="bold"))
        for variant in dict.fromkeys(row["variant"] for row in own):
            at = {row["property"]: row for row in own if row["variant"] == variant}
            table.add_row(f" {variant}", *_numbers(at, names, "r2"))
            if any(row["published"] is not None for row in at.values()):
                table.add_row("  published", *_numbers(at, names, "published"))
        table.add_section()
    return table


def _numbers(at: Mapping[str, dict[str, Any]], names: Sequence[str], key: str) -> list[str]:
    values = [at[name][key] if name in at else None for name in names]
    return ["" if value is None else f"{value:.3f}" for value in values]
