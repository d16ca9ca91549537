"""Train one network on the rows of one property, or of several jointly.

Legend: T properties, E polymers that are trained on.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.properties import Scaler
from mips_dist.errors import MipsError
from mips_dist.model.mips import PropertyModel
from mips_dist.threads import one_thread
from mips_dist.train.fold_config import FoldConfig, Indices, PropertyRows, Values, load_pretrained
from mips_dist.train.results import regression_scores

EVALUATION_BATCH_SIZE = 256
GRADIENT_CLIP = 1.0
LAST_LR = 0.05  # share of `lr` at the end of the decay
PACK_SIZE = 64  # tokens; most labelled polymers are small, and padding costs with its square

OnEpoch = Callable[[int], None]


@dataclass(slots=True)
class FittedModel:
    """A network of one property in eval mode: its scaler, epoch of its weights, and curve."""

    model: PropertyModel
    scaler: Scaler
    epoch: int
    curve: list[dict[str, float]]


@dataclass(slots=True)
class Task:
    """What is trained for one property.

    Attributes
    ----------
    train
        Rows to train on.
    watched
        Rows whose error chooses the epoch; none: the last epoch is taken.
    last_epoch
        Where the training ends, if not with the schedule.
    taught
        What a teacher says of each polymer of the block, in the unit of the property; read where
        a polymer of the training has no label. None: there is no teacher.
    """

    rows: PropertyRows
    train: Indices
    watched: Indices
    last_epoch: int | None = None
    taught: Values | None = None


@dataclass(slots=True)
class _Best:
    """The best epoch of a property so far."""

    rmse: float = math.inf
    epoch: int = 0
    state: dict[str, torch.Tensor] | None = None


def fit(
    config: FoldConfig,
    block: PolymerBlock,
    tasks: list[Task],
    key: tuple[int, int],
    where: str,
    on_epoch: OnEpoch | None,
) -> list[FittedModel]:
    """Train on the tasks' rows; each keeps the weights of the epoch that is best on its watched.

    `key` (seed, fold; -1 for all rows) makes the streams of random numbers.
    """
    for task in tasks:
        used = np.concatenate([task.train, task.watched])
        if not np.isfinite(task.rows.value[used]).all():
            raise MipsError(f"{where}: a label is NaN or infinite; remove its row")
    streams = np.random.SeedSequence([key[0], key[1] + 1])
    best = [_Best() for _ in tasks]
    curves: list[list[dict[str, float]]] = [[] for _ in tasks]
    num_epochs = max(task.last_epoch or config.num_epochs for task in tasks)
    with _seeded(int(streams.generate_state(1)[0])):
        training = Training(config, block, tasks, np.random.default_rng(streams.spawn(1)[0]))
        watched = np.unique(np.concatenate([task.rows.sample[task.watched] for task in tasks]))
        batches = evaluation_batches(block, watched)
        for epoch in range(1, num_epochs + 1):
            train_loss = training.run_epoch()
            if not math.isfinite(train_loss):
                raise MipsError(f"{where}: the loss is not finite in epoch {epoch}; lower lr")
            z = evaluate(training.averaged, batches) if batches else None
            for column, (task, own) in enumerate(zip(tasks, best, strict=True)):
                entry = {"epoch": float(epoch), "train_loss": train_loss}
                is_better = epoch == task.last_epoch
                if z is not None and len(task.watched):
                    place = np.searchsorted(watched, task.rows.sample[task.watched])
                    prediction = training.scalers[column].to_physical(z[place, column])
                    scores = regression_scores(task.rows.value[task.watched], prediction)
                    entry |= {"watched_rmse": scores.rmse, "watched_r2": scores.r2}
                    is_better = scores.rmse < own.rmse
                    own.rmse = min(own.rmse, scores.rmse)
                if is_better:
                    own.epoch = epoch
                    own.state = copy.deepcopy(training.averaged.state_dict())
                curves[column].append(entry)
            if on_epoch is not None:
                on_epoch(epoch)
            is_stale = all(epoch - own.epoch >= config.patience for own in best)
            if config.protocol == "strict" and batches and is_stale:
                break
    last = copy.deepcopy(training.averaged.state_dict())
    fitted = []
    for column, own in enumerate(best):
        # Without a finite score there is no better epoch than the last.
        training.averaged.load_state_dict(own.state or last)
        model = training.averaged.of_target(column)
        scaler = training.scalers[column]
        fitted.append(FittedModel(model, scaler, own.epoch or epoch, curves[column]))
    return fitted


class Training:
    """Network, averaged network, optimizer and the stream of batches of one training.

    Trained on are polymers; the labels of a polymer's rows have one mean, which weighs as many as
    they are. So the gradient is that of the rows. Where a polymer has no label, a teacher's word
    stands for one, with a weight of its own.
    """

    def __init__(
        self,
        config: FoldConfig,
        block: PolymerBlock,
        tasks: list[Task],
        rng: np.random.Generator,
    ) -> None:
        self.config, self.block, self.rng = config, block, rng
        self.scalers = [Scaler.fit(task.rows.value[task.train]) for task in tasks]
        self.sample = np.unique(np.concatenate([t.rows.sample[t.train] for t in tasks]))
        z = np.zeros((len(self.sample), len(tasks)))
        weight = np.zeros_like(z)
        for column, (task, scaler) in enumerate(zip(tasks, self.scalers, strict=True)):
            place = np.searchsorted(self.sample, task.rows.sample[task.train])
            np.add.at(z[:, column], place, scaler.to_z(task.rows.value[task.train]))
            np.add.at(weight[:, column], place, 1.0)
        z /= np.maximum(weight, 1.0)
        for column, (task, scaler) in enumerate(zip(tasks, self.scalers, strict=True)):
            if task.taught is not None:
                (place,) = (weight[:, column] == 0).nonzero()
                z[place, column] = scaler.to_z(task.taught[self.sample[place]])
                weight[place, column] = config.teacher_weight
        self.z_ET = torch.from_numpy(z.astype(np.float32))
        self.weight_ET = torch.from_numpy(weight.astype(np.float32))
        self.model = _initial_model(config, len(tasks))
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.num_batches = math.ceil(len(self.sample) / config.batch_size)
        num_steps = config.num_epochs * self.num_batches
        self.warmup_steps = max(1, round(config.warmup_fraction * num_steps))
        self.decay_steps = max(1, round(config.decay_fraction * num_steps))
        self.num_steps = num_steps
        self.step = 0

    def run_epoch(self) -> float:
        """Train on every polymer once; return the mean squared error of the z-scores."""
        loss_sum = torch.zeros((), device=_device())
        # Equal parts instead of full batches and a rest: none is left out, none weighs more.
        order = self.rng.permutation(len(self.sample))
        for part in np.array_split(order, self.num_batches):
            loss_sum += self._run_step(part) * self.weight_ET[part].sum()
        return float(loss_sum / self.weight_ET.sum())

    def _run_step(self, part: Indices) -> torch.Tensor:
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        batch = collate(self.block.select(self.sample[part]), PACK_SIZE).to(_device())
        weight = self.weight_ET[part].to(_device())
        error = (self.model(batch) - self.z_ET[part].to(_device())) ** 2
        loss = (weight * error).sum() / weight.sum()
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

    def _lr(self) -> float:
        rise = min(1.0, self.step / self.warmup_steps)
        left = max(0, self.num_steps - self.step) / self.decay_steps
        fall = max(LAST_LR, min(1.0, left)) if self.config.decay_fraction else 1.0
        return self.config.lr * rise * fall


def _device() -> torch.device:
    # A Ray trial without a GPU share sees no GPU.
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _initial_model(config: FoldConfig, num_targets: int) -> PropertyModel:
    if config.pretrained is None:
        return PropertyModel(config.model, num_targets).to(_device())
    return PropertyModel.from_pretrained(load_pretrained(config), num_targets).to(_device())


def evaluation_batches(block: PolymerBlock, sample: Indices) -> list[PolymerBatch]:
    """Put polymers of a block, in their order, into batches."""
    parts = range(0, len(sample), EVALUATION_BATCH_SIZE)
    chunks = [sample[start : start + EVALUATION_BATCH_SIZE] for start in parts]
    return [collate(block.select(chunk), PACK_SIZE).to(_device()) for chunk in chunks]


def evaluate(model: PropertyModel, batches: list[PolymerBatch]) -> Values:
    """Predict z-scores (polymers, T) of batches with a model in eval mode."""
    with torch.inference_mode():
        z = torch.cat([model(batch) for batch in batches])
    return z.cpu().numpy().astype(np.float64)


@contextmanager
def _seeded(torch_seed: int) -> Iterator[None]:
    """Seed torch and use one thread; restore both afterwards."""
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(torch_seed)
        yield
