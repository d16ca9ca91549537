"""Train the network on one property and score it on one fold. No Ray and no DeepSpeed here.

Legend: R rows of one property, G polymers of a block.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.properties import Scaler
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import load_bundle
from mips_dist.model.mips import MaskedAtomModel, MipsConfig, PropertyModel
from mips_dist.model.released import model_directory
from mips_dist.threads import one_thread
from mips_dist.train.results import NETWORK, FoldResult, regression_scores

PROTOCOLS = ("strict", "paper")
EVALUATION_BATCH_SIZE = 256
GRADIENT_CLIP = 1.0
PACK_SIZE = 64  # tokens; most labelled polymers are small, and padding costs with its square

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
        Folder of a pre-trained model, or the name of a released one; None: from scratch.
    protocol
        "strict": the epoch is chosen on an inner split of the training folds and the test fold is
        scored once. "paper": the epoch is chosen on the test fold, as in the released code.
    inner_fraction
        Share of the training polymers in the inner split.
    patience
        Under "strict", training ends after this many epochs without a better inner score; under
        "paper" every epoch is run.
    warmup_fraction
        Share of all steps over which the learning rate rises to `lr`; it is constant after that.
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
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative")
        for name in ("warmup_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
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


@dataclass(slots=True)
class FittedModel:
    """A trained network in eval mode, its scaler, the epoch whose weights it has, its curve."""

    model: PropertyModel
    scaler: Scaler
    epoch: int
    curve: list[dict[str, float]]


OnEpoch = Callable[[int], None]


def finetune_fold(
    config: FoldConfig,
    block: PolymerBlock,
    rows: PropertyRows,
    folds: Indices,
    fold: int,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> FoldResult:
    """Train on all folds but one and score that one.

    A function of its arguments alone: the same numbers every time on one machine. Under `strict`
    no label of the test fold is read before the one scoring at the end.

    Parameters
    ----------
    block
        The polymers that `rows.sample` points to.
    folds
        (R,) fold of each row; rows of one polymer share a fold.
    on_epoch
        Called with the number of every finished epoch.

    Raises
    ------
    MipsError
        A label or the loss is not finite; too few rows; a pre-trained model that does not fit.
    """
    started = time.monotonic()
    test = np.flatnonzero(folds == fold)
    outer = np.flatnonzero(folds != fold)
    where = f"{rows.name} fold {fold} seed {seed}"
    if config.protocol == "strict":
        watched = inner_split(rows.sample, outer, config.inner_fraction, seed, fold)
        train = np.setdiff1d(outer, watched)
    else:
        watched, train = test, outer
    if not (len(train) and len(watched) and len(test)):
        raise MipsError(f"{where}: {len(outer)} training and {len(test)} test rows are too few")
    fitted = _fit(config, block, rows, train, watched, (seed, fold), where, on_epoch)
    prediction = predict(fitted, block, rows.sample[test])
    return FoldResult(
        model=NETWORK,
        property=rows.name,
        unit=rows.unit,
        fold=fold,
        seed=seed,
        protocol=config.protocol,
        epoch=fitted.epoch,
        num_train=len(train),
        seconds=time.monotonic() - started,
        curve=fitted.curve,
        row=rows.row[test].tolist(),
        prediction=prediction.tolist(),
        **regression_scores(rows.value[test], prediction)._asdict(),
    )


def finetune_all(
    config: FoldConfig, block: PolymerBlock, rows: PropertyRows, num_epochs: int, seed: int
) -> FittedModel:
    """Train on every row for a number of epochs that the folds have chosen."""
    every = np.arange(len(rows.value))
    config = copy.copy(config)
    config.num_epochs = num_epochs
    return _fit(config, block, rows, every, every[:0], (seed, -1), rows.name, None)


def inner_split(sample: Indices, outer: Indices, fraction: float, seed: int, fold: int) -> Indices:
    """Choose the rows of the training folds that choose the epoch; whole polymers only.

    Parameters
    ----------
    sample
        (R,) polymer of each row.
    outer
        Rows of the training folds.

    Returns
    -------
    Rows of the inner split, sorted.
    """
    polymers = np.unique(sample[outer])
    rng = np.random.default_rng([seed, fold, 0])
    chosen = rng.permutation(polymers)[: max(1, round(fraction * len(polymers)))]
    return outer[np.isin(sample[outer], chosen)]


def predict(fitted: FittedModel, block: PolymerBlock, sample: Indices) -> Values:
    """Predict polymers of a block in the unit of the property, (R,) for (R,) polymers."""
    return _evaluate(fitted.model, _evaluation_batches(block, sample), fitted.scaler)


def _fit(
    config: FoldConfig,
    block: PolymerBlock,
    rows: PropertyRows,
    train: Indices,
    watched: Indices,
    key: tuple[int, int],
    where: str,
    on_epoch: OnEpoch | None,
) -> FittedModel:
    """Train on `train`; keep the weights of the epoch that does best on `watched`, else the last.

    `key` (seed, fold; -1 for all rows) makes the streams of random numbers.
    """
    if not np.isfinite(rows.value[np.concatenate([train, watched])]).all():
        raise MipsError(f"{where}: a label is NaN or infinite; remove its row")
    streams = np.random.SeedSequence([key[0], key[1] + 1])
    best_rmse, best_epoch, best_state = math.inf, 0, None
    curve: list[dict[str, float]] = []
    with _seeded(int(streams.generate_state(1)[0])):
        training = _Training(config, block, rows, train, np.random.default_rng(streams.spawn(1)[0]))
        batches = _evaluation_batches(block, rows.sample[watched])
        for epoch in range(1, config.num_epochs + 1):
            train_loss = training.run_epoch()
            if not math.isfinite(train_loss):
                raise MipsError(f"{where}: the loss is not finite in epoch {epoch}; lower lr")
            entry = {"epoch": float(epoch), "train_loss": train_loss}
            if batches:
                prediction = _evaluate(training.averaged, batches, training.scaler)
                scores = regression_scores(rows.value[watched], prediction)
                entry |= {"watched_rmse": scores.rmse, "watched_r2": scores.r2}
                if scores.rmse < best_rmse:
                    best_rmse, best_epoch = scores.rmse, epoch
                    best_state = copy.deepcopy(training.averaged.state_dict())
            curve.append(entry)
            if on_epoch is not None:
                on_epoch(epoch)
            if config.protocol == "strict" and batches and epoch - best_epoch >= config.patience:
                break
    if best_state is not None:
        training.averaged.load_state_dict(best_state)
    return FittedModel(training.averaged, training.scaler, best_epoch or epoch, curve)


class _Training:
    """Network, averaged network, optimizer and the stream of batches of one training."""

    def __init__(
        self,
        config: FoldConfig,
        block: PolymerBlock,
        rows: PropertyRows,
        train: Indices,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.block, self.train, self.rng = config, block, train, rng
        self.sample = rows.sample
        self.scaler = Scaler.fit(rows.value[train])
        self.z = torch.from_numpy(self.scaler.to_z(rows.value).astype(np.float32))
        self.model = _initial_model(config)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.num_batches = math.ceil(len(train) / config.batch_size)
        num_steps = config.num_epochs * self.num_batches
        self.warmup_steps = max(1, round(config.warmup_fraction * num_steps))
        self.step = 0

    def run_epoch(self) -> float:
        """Train on every row once; return the mean squared error of the z-scores."""
        loss_sum = torch.zeros((), device=_device())
        # Equal parts instead of full batches and a rest: no row is left out, none weighs more.
        for part in np.array_split(self.rng.permutation(self.train), self.num_batches):
            loss_sum += self._run_step(part) * len(part)
        return float(loss_sum) / len(self.train)

    def _run_step(self, part: Indices) -> torch.Tensor:
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * min(1.0, self.step / self.warmup_steps)
        batch = collate(self.block.select(self.sample[part]), PACK_SIZE).to(_device())
        loss = F.mse_loss(self.model(batch)[:, 0], self.z[part].to(_device()))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        # In the first steps a long memory would keep the initial weights, so it grows with them.
        decay = min(self.config.ema_decay, self.step / (self.step + 9))
        with torch.no_grad():
            for kept, current in zip(
                self.averaged.parameters(), self.model.parameters(), strict=True
            ):
                kept.lerp_(current, 1.0 - decay)
        return loss.detach()


def _device() -> torch.device:
    # A Ray trial without a GPU share sees no GPU.
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _initial_model(config: FoldConfig) -> PropertyModel:
    if config.pretrained is None:
        return PropertyModel(config.model).to(_device())
    return PropertyModel.from_pretrained(load_pretrained(config)).to(_device())


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


def _evaluation_batches(block: PolymerBlock, sample: Indices) -> list[PolymerBatch]:
    parts = range(0, len(sample), EVALUATION_BATCH_SIZE)
    chunks = [sample[start : start + EVALUATION_BATCH_SIZE] for start in parts]
    return [collate(block.select(chunk), PACK_SIZE).to(_device()) for chunk in chunks]


def _evaluate(model: PropertyModel, batches: list[PolymerBatch], scaler: Scaler) -> Values:
    """Predict batches with a model in eval mode, in the unit of the property."""
    with torch.inference_mode():
        z = torch.cat([model(batch)[:, 0] for batch in batches])
    return scaler.to_physical(z.cpu().numpy().astype(np.float64))


@contextmanager
def _seeded(torch_seed: int) -> Iterator[None]:
    """Seed torch and use one thread; restore both afterwards."""
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(torch_seed)
        yield
