"""A tiny model and its data, for tests of the engine alone. Run under torchrun by `workers.py`."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import OptimizerConfig, learning_rate, make_adam
from mips_dist.train.ranks import Ranks
from mips_dist.train.zero import ZeroConfig

GLOBAL_BATCH = 16
CLASSES = 7
OPTIMIZER = OptimizerConfig(clip_norm=0.5)


class Toy(nn.Module):
    """Odd sizes, so that partitions need padding; one parameter that never gets a gradient."""

    def __init__(self, dropout: float = 0.0, depth: int = 0) -> None:
        super().__init__()
        width = 33
        self.embed = nn.Embedding(10, width)
        self.up = nn.Linear(width, 3 * width + 1)
        self.norm = nn.LayerNorm(3 * width + 1)
        self.drop = nn.Dropout(dropout)
        self.down = nn.Linear(3 * width + 1, CLASSES)
        size = 3 * width + 1
        self.deep = nn.ModuleList(nn.Linear(size, size) for _ in range(depth))
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.norm(self.up(self.embed(tokens)))))
        for layer in self.deep:
            x = x + torch.tanh(layer(x))
        return self.down(x)


@dataclass
class Curve:
    losses: list[float]
    norms: list[float]
    applied: list[bool]


def build(
    ranks: Ranks,
    stage: int,
    precision: str = "fp32",
    *,
    dropout: float = 0.0,
    depth: int = 0,
    accum: int = 2,
    clip_norm: float = OPTIMIZER.clip_norm,
    offload: str = "none",
) -> TrainEngine:
    torch.manual_seed(0)
    return TrainEngine(
        lambda: Toy(dropout, depth),
        lambda parameters: make_adam(parameters, OPTIMIZER),
        ranks,
        stage=stage,
        precision=precision,
        zero=ZeroConfig(offload=offload),
        micro_batch_size=GLOBAL_BATCH // (ranks.world_size * accum),
        grad_accum_steps=accum,
        clip_norm=clip_norm,
    )


def data(step: int) -> list[tuple[Tensor, Tensor]]:
    """Give the step's 16 samples, each with its own number of masked atoms (some with none)."""
    generator = torch.Generator().manual_seed(step)
    sizes = torch.randint(0, 9, (GLOBAL_BATCH,), generator=generator)
    pairs = []
    for size in sizes.tolist():
        tokens = torch.randint(0, 10, (size,), generator=generator)
        pairs.append((tokens, (tokens * 3 + 1) % CLASSES))
    return pairs


def train(
    engine: TrainEngine, steps: range, accum: int = 2, poison: set[int] | None = None
) -> Curve:
    """Train some steps; at a poisoned step one micro-batch of rank 0 has a loss of NaN."""
    ranks, curve = engine.ranks, Curve([], [], [])
    for step in steps:
        samples = data(step)
        share = GLOBAL_BATCH // (ranks.world_size * accum)
        count = float(sum(len(tokens) for tokens, _ in samples))
        loss_sum = 0.0
        for micro in range(accum):
            first = (ranks.rank * accum + micro) * share
            tokens = torch.cat([t for t, _ in samples[first : first + share]])
            classes = torch.cat([c for _, c in samples[first : first + share]])
            torch.manual_seed(1000 * step + 10 * ranks.rank + micro)
            loss = masked_atom_loss(engine(tokens), classes).loss_sum
            if poison and step in poison and ranks.rank == 0 and micro == 0:
                loss = loss * float("nan")
            engine.backward(loss, count, is_last=micro == accum - 1)
            loss_sum += float(loss.detach())
        result = engine.step(learning_rate(step, 40, 1e-2, 0.2))
        curve.losses.append(ranks.sum(loss_sum)[0] / count)
        curve.norms.append(float(result.grad_norm))
        curve.applied.append(bool(result.is_applied))
    return curve


def digest(engine: TrainEngine) -> str:
    """Hash the gathered weights and moments, bit for bit."""
    total = hashlib.sha256()
    for name, whole in engine.full_state():
        for key, tensor in sorted(whole.items()):
            total.update(f"{name}.{key}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()
