"""Count the collectives of a step at every stage, on two ranks; rank 0 writes them as JSON.

See test_traffic.py.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mips_dist.chem.sample import featurize
from mips_dist.config import compose
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import engine
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import make_adam
from mips_dist.train.plan import model_size
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.ranks import Ranks
from mips_dist.train.scaling import LIVE_ELEMENTS, PERSISTENT_ELEMENTS, REUSE_DISTANCE
from mips_dist.train.traffic import CollectiveCounter, sent_bytes, sent_since
from mips_dist.train.validation import masked_classes
from mips_dist.train.zero import ZeroConfig

CONFIG = compose(
    PretrainConfig, "pretrain", ["model=small", "model.num_layers=3", "model.descriptors=[]"]
)
# The largest preset with all widths divided by 32; DeepSpeed's sizes for it are divided likewise.
XL_WIDTH_DIVISOR = 32
XL = compose(PretrainConfig, "pretrain", ["model=xl", "model.descriptors=[]"]).model
SMALL_XL = replace(
    XL, hidden_dim=XL.hidden_dim // XL_WIDTH_DIVISOR, ffn_dim=XL.ffn_dim // XL_WIDTH_DIVISOR
)
WARM_UP_STEPS = 2  # stage 3 learns the order of the weights in the first
LAST_GRADIENT = "last gradient"
BUCKET = 100_000


def engine_with(settings: dict[str, Any]) -> type[TrainEngine]:
    """An engine with some other settings of DeepSpeed's."""

    class Changed(TrainEngine):
        def _deepspeed_config(self, *sizes: int) -> dict[str, Any]:
            config = super()._deepspeed_config(*sizes)
            config["zero_optimization"].update(settings)
            return config

    return Changed


def count(
    ranks: Ranks,
    batch: PolymerBatch,
    *,
    stage: int,
    model: MipsConfig = CONFIG.model,
    precision: str = "fp32",
    accum: int = 1,
    bucket: int = CONFIG.zero.bucket_elements,
    **settings: Any,
) -> dict[str, Any]:
    """Take some steps and return what the last one said to the other rank."""
    torch.manual_seed(0)
    trainer = engine_with(settings)(
        lambda: MaskedAtomModel(model),
        lambda parameters: make_adam(parameters, CONFIG.optimizer),
        ranks,
        stage=stage,
        precision=precision,
        zero=ZeroConfig(stage=stage, bucket_elements=bucket),
        grad_accum_steps=accum,
    )
    # Of the first layer that reads the batch, so that its gradient comes last.
    counter = CollectiveCounter()
    first = next(trainer.module.parameters())
    first.register_hook(lambda _: counter.order.append(LAST_GRADIENT))
    for _ in range(WARM_UP_STEPS):
        step(trainer, batch, accum)
    counter.order.clear()
    ranks.sum(0.0)  # an answer over the same sockets: what was sent before it has gone
    before = sent_bytes()
    with counter:
        step(trainer, batch, accum)
    ranks.sum(0.0)
    sent = sent_since(before)
    trainer.close()
    return {
        "count": counter.count,
        "num_bytes": counter.num_bytes,
        "ring": counter.wire_bytes(ranks.world_size),
        "sent": sent,
        "order": counter.order,
    }


def step(trainer: TrainEngine, batch: PolymerBatch, accum: int) -> None:
    for number in range(accum):
        loss = masked_atom_loss(trainer(batch), masked_classes(batch))
        trainer.backward(loss.loss_sum, 2 * accum * batch.num_masked, is_last=number == accum - 1)
    trainer.step(1e-3)


def main(folder: Path) -> None:
    ranks = engine.start("fp32", 1)
    samples = featurize(["*CC(*)c1ccccc1", "*CCO*", "*C(=O)c1ccc(cc1)N*"], "topology")
    batch = collate(stack(samples, range(3)))
    batch = replace(batch, is_masked=torch.arange(len(batch.atom_features)) % 3 == 0)
    found: dict[str, Any] = {"size": asdict(model_size(CONFIG.model))}
    once = [("fp32", stage, 1) for stage in range(4)] + [("bf16", stage, 1) for stage in (1, 2, 3)]
    twice = [("fp32", stage, 2) for stage in (1, 2, 3)] + [("bf16", 1, 2)]
    for precision, stage, accum in once + twice:
        found[f"{precision}-{stage}-{accum}"] = count(
            ranks, batch, stage=stage, precision=precision, accum=accum
        )
    for stage in range(4):
        found[f"bucket-{stage}"] = count(ranks, batch, stage=stage, bucket=BUCKET)
    found["bf16-bucket-1"] = count(ranks, batch, stage=1, precision="bf16", bucket=BUCKET)
    elements = XL_WIDTH_DIVISOR**2
    found["small_xl"] = count(
        ranks,
        batch,
        stage=3,
        model=SMALL_XL,
        bucket=CONFIG.zero.bucket_elements // elements,
        stage3_max_reuse_distance=REUSE_DISTANCE // elements,
        stage3_max_live_parameters=LIVE_ELEMENTS // elements,
        stage3_param_persistence_threshold=PERSISTENT_ELEMENTS // XL_WIDTH_DIVISOR,
    )
    if ranks.is_main:
        (folder / "traffic.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
