"""The configuration of a fine-tuning study: which labels, which cells, and where."""

import re
from dataclasses import dataclass, field

from mips_dist.chem.stars import STAR_STRATEGIES
from mips_dist.data.properties import BENCHMARK
from mips_dist.train.baselines import BASELINES
from mips_dist.train.fold_config import FoldConfig

SEARCHES = ("asha", "optuna")


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(FoldConfig):
    """A study: which labels, which cells, and where.

    Attributes
    ----------
    run_dir
        Everything is written below it, a folder or a URL (``s3://``); the same command on it
        continues.
    data_dir
        Folder of the eight sets; default $MIPS_DATA/benchmark.
    input, targets, units
        A csv of one's own instead: its path or URL, label columns, and their units (none or all).
    psmiles_column
        Of that csv; None: psmiles, else smiles.
    properties
        Which of the eight sets to run; the folds are always over all eight.
    shards
        Finished shards that hold these polymers, or their URL; default: made in run_dir/shards.
    baselines
        Run on the same folds: mean, boosting, gp-trees; gp-trees-xtb and chemprop, if what they
        need is installed. With gp-trees there is also the row mips-ensemble: its mean with the
        network.
    joint
        Train one network for all properties, with a last layer for each, instead of one network
        for each property. The polymers of a test fold are banned from all of them.
    seeds
        Seeds of the network; each gives another initialisation, batch order and inner split.
    fold_seed
        Seed of the folds.
    save_model
        Whether a model trained on all rows is left in run_dir/models for each property.
    permute_labels
        Seed of a permutation of each property's labels among its rows, made after the folds: what
        is then still predicted comes from a leak. None: the labels as they are.
    num_workers
        Trials at a time; default: as many as the cores allow.
    cpus_per_trial, gpus_per_trial
        Cores and GPUs of a trial; parts of one are allowed.
    star_strategy
        What becomes of the two stars of a unit, see `mips_dist.chem.stars`; "link", the exact
        chain, everywhere but in an ablation.
    ablation
        Run the studies of configs/ablation.yaml, each in a folder of run_dir.
    search
        None: run the study. "asha" or "optuna": instead, look for the values of
        configs/search_space.yaml on the inner splits; no test fold is scored.
    search_trials, search_seed
        Points that are tried for each property, and the seed of their choice.
    given
        Keys of the command line, which go before the values of a property's file.
    """

    run_dir: str = "runs/finetune"
    data_dir: str | None = None
    input: str | None = None
    targets: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    psmiles_column: str | None = None
    properties: list[str] = field(default_factory=lambda: list(BENCHMARK))
    shards: str | None = None
    baselines: list[str] = field(default_factory=lambda: ["mean", "boosting"])
    joint: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    num_folds: int = 5
    fold_seed: int = 1
    save_model: bool = True
    permute_labels: int | None = None
    num_workers: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    star_strategy: str = "link"
    ablation: bool = False
    search: str | None = None
    search_trials: int = 16
    search_seed: int = 0
    given: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        FoldConfig.__post_init__(self)
        if (self.input is None) != (not self.targets):
            raise ValueError("input=FILE and targets=[COLUMN,...] go together")
        if self.input is not None and self.data_dir is not None:
            raise ValueError(
                "give either input= (a csv of one's own) or data_dir= (the eight sets)"
            )
        if self.units and len(self.units) != len(self.targets):
            raise ValueError(f"units={self.units} must name one unit for each of the targets")
        for name, choices in (("properties", BENCHMARK), ("baselines", BASELINES)):
            unknown = [value for value in getattr(self, name) if value not in choices]
            if unknown:
                raise ValueError(f"{name}: no '{unknown[0]}'; choose of {', '.join(choices)}")
        for name in ("properties", "targets", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} names one twice")
        folders = [slug(name) for name in self.targets]
        if len(set(folders)) < len(folders):
            raise ValueError(
                f"targets={self.targets}: two of them would share a model folder "
                f"({max(folders, key=folders.count)}); rename a column of the csv"
            )
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds} needs numbers from 0")
        if self.num_folds < 2:
            raise ValueError(f"num_folds={self.num_folds} must be at least 2")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers} must be at least 1")
        if self.permute_labels is not None and self.permute_labels < 0:
            raise ValueError(
                f"permute_labels={self.permute_labels} must be a number from 0, or null"
            )
        if self.star_strategy not in STAR_STRATEGIES:
            raise ValueError(
                f"star_strategy={self.star_strategy} must be one of {', '.join(STAR_STRATEGIES)}"
            )
        if self.star_strategy != "link" and self.save_model:
            # A saved model would be given graphs of the exact chain.
            raise ValueError(f"star_strategy={self.star_strategy} needs save_model=false")
        if self.teacher_weight and not self.joint:
            raise ValueError(
                f"teacher_weight={self.teacher_weight} needs joint=true: of one property alone, "
                "every training polymer has its label"
            )
        if self.search is not None:
            if self.search not in SEARCHES:
                raise ValueError(f"search={self.search} must be one of {', '.join(SEARCHES)}")
            if self.joint:
                raise ValueError(f"search={self.search} needs joint=false, a network for each")
            if self.protocol != "strict":
                raise ValueError(f"search={self.search} needs protocol=strict, with inner splits")
            if self.search_trials < 1 or self.search_seed < 0:
                raise ValueError("search_trials must be at least 1, search_seed at least 0")
        if not self.cpus_per_trial > 0:
            raise ValueError(f"cpus_per_trial={self.cpus_per_trial} must be above 0")
        if self.gpus_per_trial < 0:
            raise ValueError(f"gpus_per_trial={self.gpus_per_trial} must not be negative")


def slug(name: str) -> str:
    """Return a property name as a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
