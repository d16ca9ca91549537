"""Print what each rank really holds at every ZeRO stage: proven, not configured.

    python scripts/zero_bytes.py [model=small] [precision=fp32]

starts two CPU ranks, takes one optimizer step, and measures the memory behind Adam's moments,
DeepSpeed's own copy of the weights, gradients and weights. Gradients are measured twice: between
two micro-batches, where stage 1 still holds all of them, and just before the step.
"""

import subprocess
import sys
from dataclasses import asdict, replace
from os import environ

import torch

from mips_dist.chem.sample import featurize
from mips_dist.config import compose
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.errors import guarded
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train import engine
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import make_adam
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.ranks import Ranks
from mips_dist.train.validation import masked_classes

RANKS = 2
MEBIBYTE = 2**20
COLUMNS = ("moments", "weight copy", "gradients", "before step", "weights")


def example() -> PolymerBatch:
    """Polystyrene with every third atom masked: a real batch, so that every weight is used."""
    samples = featurize(["*CC(*)c1ccccc1"], "full")
    batch = collate(stack(samples, [0]))
    return replace(batch, is_masked=torch.arange(len(batch.atom_features)) % 3 == 0)


def measure(config: PretrainConfig, ranks: Ranks, stage: int, batch: PolymerBatch) -> list[float]:
    """Return the mean over ranks of each column, in bytes."""
    torch.manual_seed(0)
    trainer = TrainEngine(
        lambda: MaskedAtomModel(config.model),
        lambda parameters: make_adam(parameters, config.optimizer),
        ranks,
        stage=stage,
        precision=config.precision,
        grad_accum_steps=2,
    )
    held = []
    for _ in range(2):  # Adam makes its moments in the first step
        held.clear()
        for is_last in (False, True):
            loss = masked_atom_loss(trainer(batch), masked_classes(batch))
            trainer.backward(loss.loss_sum, RANKS * 2 * batch.num_masked, is_last=is_last)
            held.append(asdict(trainer.state_bytes()))
        trainer.step(1e-4)
    between, before = held
    here = [before["optimizer"], before["master"], between["gradients"], before["gradients"]]
    totals = ranks.sum(*here, before["parameters"])
    trainer.close()
    return [total / RANKS for total in totals]


def report(overrides: list[str]) -> int:
    """Measure and print, on one of the ranks."""
    config = compose(PretrainConfig, "pretrain", overrides)
    ranks = engine.start(config.precision, num_threads=1)
    stages = range(4) if config.precision == "fp32" else range(1, 4)
    batch = example()
    rows = {stage: measure(config, ranks, stage, batch) for stage in stages}
    if ranks.is_main:
        size = sum(p.numel() for p in MaskedAtomModel(config.model).parameters())
        print(f"{size:,} parameters, {config.precision}, {RANKS} ranks: MiB held by each rank")
        print("stage " + "".join(f"{name:>14}" for name in COLUMNS))
        for stage, row in rows.items():
            first = rows[stages[0]]
            cells = (
                f"{value / MEBIBYTE:.2f} ({value / base:.0%})"
                if base
                else f"{value / MEBIBYTE:.2f}"
                for value, base in zip(row, first, strict=True)
            )
            print(f"{stage:>5} " + "".join(f"{cell:>14}" for cell in cells))
    return 0


if __name__ == "__main__":
    if "RANK" in environ:
        sys.exit(guarded(lambda: report(sys.argv[1:])))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc_per_node={RANKS}", *sys.argv]
    sys.exit(subprocess.run(launch, env={**environ, "OMP_NUM_THREADS": "1"}).returncode)
