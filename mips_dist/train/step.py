"""One optimizer step, and what is known of it while a GPU is not done with it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.order import hash_keys
from mips_dist.train.engine import TrainEngine
from mips_dist.train.feed import Feed, Readback
from mips_dist.train.metrics import StepReport
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import learning_rate
from mips_dist.train.replay import Replay
from mips_dist.train.resume import TrainState
from mips_dist.train.signals import StopSignal
from mips_dist.train.validation import masked_classes

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingReport:
    """What a step did, as far as it is known before the device is done with it.

    ``batches`` are this rank's micro-batches.
    """

    step: int
    # Summed loss, correct atoms, ranks that stop; masked atoms, gradient norm, whether applied.
    numbers: Readback
    lr: float
    batches: list[PolymerBatch]
    polymers: int
    seconds: float
    data_wait: float

    def read(self) -> tuple[StepReport, bool]:
        """Return the report, and whether some rank was asked to stop; the same on every rank."""
        loss_sum, correct, num_stopping, count, grad_norm, is_applied = self.numbers.tolist()
        report = StepReport(
            loss=loss_sum / count,
            accuracy=correct / count,
            lr=self.lr,
            grad_norm=grad_norm,
            is_applied=is_applied > 0,
            polymers=self.polymers,
            seconds=self.seconds,
            data_wait=self.data_wait,
        )
        return report, num_stopping > 0


def train_step(
    run: "Run",
    trainer: TrainEngine,
    feed: Feed,
    state: TrainState,
    stop: StopSignal,
    meanwhile: Callable[[], None],
    replay: Replay | None = None,
) -> PendingReport:
    """Do one optimizer step and advance the state's number of it.

    On a GPU nothing here waits for it before ``meanwhile``, which is called when all of the
    backward pass has been asked of it and is the place for other work, and nothing after it where
    the engine keeps sums of the gradients. ``replay`` does the padded micro-batches, where there is
    one.
    """
    config, ranks = run.config, run.ranks
    started = time.perf_counter()
    batches, data_wait = feed.take()

    def number(value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float64, device=ranks.device)

    count = ranks.total(number(sum(batch.num_masked for batch in batches))).clamp(min=1)
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for micro_batch, batch in enumerate(batches):
        seed_dropout(config.seed, state.step, ranks.rank, micro_batch)
        is_last = micro_batch == len(batches) - 1
        if replay is not None and batch.real_sizes is not None:
            loss_sum, num_correct = replay(batch, count.squeeze())
            trainer.end_backward(is_last=is_last)
        else:
            loss = masked_atom_loss(trainer(batch), masked_classes(batch))
            loss_sum, num_correct = loss.loss_sum, loss.num_correct
            trainer.backward(loss_sum, count.squeeze(), is_last=is_last)
        sums += torch.stack([loss_sum.detach(), num_correct])
    feed.ahead()
    meanwhile()

    peak_lr = config.optimizer.peak_lr(run.model.hidden_dim)
    lr = learning_rate(state.step, config.num_steps, peak_lr, config.optimizer.warmup_fraction)
    result = trainer.step(lr)
    sums = ranks.total(torch.cat([sums, number(stop.is_set)]))
    done = [result.grad_norm.to(sums).reshape(1), result.is_applied.to(sums).reshape(1)]
    state.step += 1
    return PendingReport(
        step=state.step,
        numbers=Readback(torch.cat([sums, count, *done])),
        lr=lr,
        batches=batches,
        polymers=config.global_batch_size,
        seconds=time.perf_counter() - started,
        data_wait=data_wait,
    )


def count_skipped(state: TrainState, report: StepReport, precision: str) -> bool:
    """Count a step that was not applied; return whether it is one to worry about."""
    # fp16 skips steps while it looks for its loss scale; that alone is no divergence.
    is_bad = not report.is_applied and not (precision == "fp16" and math.isfinite(report.loss))
    state.num_skipped += not report.is_applied
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if is_bad else 0
    return is_bad


def seed_dropout(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Make dropout a function of these four numbers, so that a resumed run repeats it."""
    torch.manual_seed(int(hash_keys(seed, step, rank, micro_batch)[0]))
