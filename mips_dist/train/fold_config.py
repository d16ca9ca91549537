"""How the network is fine-tuned on a fold, and the labelled rows that it is given."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import load_bundle
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.model.released import model_directory, released_models

PROTOCOLS = ("strict", "paper")

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class FoldConfig:
    """How the network is trained on one fold.

    Attributes
    ----------
    model
        Sizes and switches; must be those of `pretrained` where that is given.
    pretrained
        Folder of a pre-trained model, its URL, or the name of a released one; None: from scratch.
    protocol
        "strict": the epoch is chosen on an inner split of the training folds and the test fold is
        scored once. "paper": the epoch is chosen on the test fold, as in the released code.
    inner_fraction
        Share of the training polymers in the inner split.
    patience
        Under "strict", training ends after this many epochs without a better inner score; under
        "paper" every epoch is run.
    warmup_fraction, decay_fraction
        Shares of the steps of all `num_epochs` over which the learning rate rises to `lr` at the
        beginning, and falls to a twentieth of it at the end.
    teacher_weight
        Weight, against that of a label, of what `gp-trees` says of a training polymer that has no
        label of a property: the teacher of a joint network, fitted to the same training folds.
        0: none.
    ema_decay
        Per-step decay of the averaged weights that are evaluated and kept; 0: no averaging.
    """

    model: MipsConfig = field(default_factory=MipsConfig)
    pretrained: str | None = None
    protocol: str = "strict"
    num_epochs: int = 50
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.0
    teacher_weight: float = 0.0
    ema_decay: float = 0.99
    inner_fraction: float = 0.15
    patience: int = 15

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol} must be one of {', '.join(PROTOCOLS)}")
        for name in ("num_epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        for name in ("weight_decay", "teacher_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("warmup_fraction", "decay_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction and decay_fraction must not overlap")
        if not 0 < self.inner_fraction <= 0.5:
            raise ValueError(f"inner_fraction={self.inner_fraction} must be in (0, 0.5]")


@dataclass(frozen=True, slots=True)
class PropertyRows:
    """The labelled rows of one property, pointing into a block of polymers.

    Attributes
    ----------
    sample
        (R,) polymer of the block; rows of one polymer have the same.
    row
        (R,) row of the csv.
    value
        (R,) in `unit`.
    """

    name: str
    unit: str
    sample: Indices
    row: Indices
    value: Values


def pretrained_path(config: FoldConfig) -> str | None:
    """Return `pretrained` as it holds in any working directory: trials may run on other hosts."""
    given = config.pretrained
    if given is None or given in released_models() or "://" in given:
        return given
    return str(Path(given).resolve())


def load_pretrained(config: FoldConfig) -> MaskedAtomModel:
    """Load the pre-trained model and check that it is the one that the configuration describes.

    Dropout may differ: it belongs to the training, not to the weights; and so may the head, for
    that of a property model is another one. Descriptor groups may be added after those of the
    pre-training; their projections start at zero.
    """
    assert config.pretrained is not None
    bundle = load_bundle(model_directory(config.pretrained), known_schema())
    if not isinstance(bundle.model, MaskedAtomModel):
        raise MipsError(f"{config.pretrained} is a finished property model; give a pre-trained one")
    wanted, found = asdict(config.model), asdict(bundle.model.config)
    groups = found["descriptors"]
    added = wanted["descriptors"][len(groups) :] if groups else []
    if wanted["descriptors"] == groups + added:
        wanted["descriptors"] = groups
    differing = [
        f"model.{name}={json.dumps(found[name], separators=(',', ':'))}".replace('"', "")
        for name in wanted
        if wanted[name] != found[name] and name not in ("dropout", "head")
    ]
    if differing:
        raise MipsError(
            f"{config.pretrained} is another model; add {' '.join(differing)} (or its model=NAME)"
        )
    model = MaskedAtomModel(config.model)
    of_added = tuple(f"encoder.fusion.{part}.{g}." for part in ("key", "value") for g in added)
    zeros = {
        name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
        if name.startswith(of_added)
    }
    model.load_state_dict(zeros | bundle.model.state_dict())
    return model
