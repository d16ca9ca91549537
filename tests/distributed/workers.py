"""Tasks for one or two ranks; rank 0 writes its findings as JSON. See test_engine.py.

Several checks share one start-up, which costs more than they do.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import toy

from mips_dist.chem.sample import featurize
from mips_dist.config import compose
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.data.padding import Capacity, pad
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import checkpoint, engine
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import OptimizerConfig, make_adam
from mips_dist.train.plan import count_parameters
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.ranks import Ranks
from mips_dist.train.replay import Replay
from mips_dist.train.validation import masked_classes

SETUPS = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in (1, 2, 3)]


def stages(ranks: Ranks, folder: Path) -> dict:
    """Twenty steps at every stage, the eighth poisoned on rank 0, then what each rank holds."""
    found: dict = {"curves": {}, "bytes": {}, "adam_steps": {}}
    for precision, stage in SETUPS:
        trainer = toy.build(ranks, stage, precision)
        found["curves"][f"{precision}-{stage}"] = asdict(toy.train(trainer, range(20), poison={7}))
        found["adam_steps"][f"{precision}-{stage}"] = trainer.adam_steps()
        trainer.close()
    for stage in range(4):
        trainer = toy.build(ranks, stage, depth=10)
        found["bytes"][stage] = held_bytes(trainer)
        trainer.close()
    return found


def held_bytes(trainer: TrainEngine) -> list[dict]:
    """Bytes that each rank holds between two micro-batches, and before the step."""
    toy.train(trainer, range(1))
    tokens, classes = (torch.cat(part) for part in zip(*toy.data(1), strict=True))
    rows = []
    for is_last in (False, True):
        trainer.backward(masked_atom_loss(trainer(tokens), classes).loss_sum, 1, is_last=is_last)
        held = asdict(trainer.state_bytes())
        totals = trainer.ranks.sum(*held.values())
        rows.append(dict(zip(held, (t / trainer.ranks.world_size for t in totals), strict=True)))
    trainer.step(1e-3)
    return rows


def offload(ranks: Ranks, folder: Path) -> dict:
    """The same twenty steps with optimizer state and step on the CPU, and on board."""
    found = {}
    for precision, stage in [("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]:
        for where in ("none", "optimizer"):
            trainer = toy.build(ranks, stage, precision, offload=where)
            curve = asdict(toy.train(trainer, range(20), poison={7}))
            found[f"{precision}-{stage}-{where}"] = {**curve, "digest": toy.digest(trainer)}
            trainer.close()
    return found


def polymers() -> PolymerBatch:
    """Three polymers with every third atom masked."""
    samples = featurize(["*CC(*)c1ccccc1", "*CCO*", "*C(=O)c1ccc(cc1)N*"], "topology")
    batch = collate(stack(samples, range(3)))
    return replace(batch, is_masked=torch.arange(len(batch.atom_features)) % 3 == 0)


def steps_of(trainer: TrainEngine, batch: PolymerBatch, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = masked_atom_loss(trainer(batch), masked_classes(batch))
        trainer.backward(loss.loss_sum, 2 * batch.num_masked, is_last=True)
        trainer.step(1e-3)
        losses.append(float(loss.loss_sum.detach()))
    return losses


def replayed(ranks: Ranks, folder: Path) -> dict:
    """Gradient sums of what a GPU records, on padded batches, beside DeepSpeed's own."""
    config = MipsConfig(
        hidden_dim=64, num_layers=3, num_heads=4, ffn_dim=256, descriptors=[], dropout=0.0
    )

    def make() -> MaskedAtomModel:
        torch.manual_seed(0)
        return MaskedAtomModel(config)

    trainer = TrainEngine(
        make,
        lambda parameters: make_adam(parameters, OptimizerConfig()),
        ranks,
        stage=1,
        precision="bf16",
        grad_accum_steps=2,
    )
    twin = make().to(trainer.dtype)
    trainer.share_weights(twin)
    replay = Replay(trainer, twin, is_compiled=False)
    batch = replace(polymers(), path_bond_pair=None)
    padded = pad(batch, Capacity.over([batch]))
    count = torch.tensor(2.0 * ranks.world_size * batch.num_masked)
    (sums,) = trainer.gradient_sums()
    found: dict = {"norms": [], "errors": [], "losses": []}
    for _ in range(3):
        for is_last in (False, True):
            loss = masked_atom_loss(trainer(batch), masked_classes(batch))
            trainer.backward(loss.loss_sum, count, is_last=is_last)
        expected = sums.clone()
        sums.zero_()
        for is_last in (False, True):
            loss_sum, num_correct = replay.compute(padded, count)
            trainer.end_backward(is_last=is_last)
        found["errors"].append(float((sums - expected).norm() / expected.norm()))
        found["losses"].append([float(loss.loss_sum.detach()), float(loss_sum)])
        assert int(num_correct) == int(loss.num_correct)
        found["norms"].append(float(trainer.step(1e-2).grad_norm))
    trainer.close()
    return found


def recompute(ranks: Ranks, folder: Path) -> dict:
    """Losses of real polymers, dropout on, layers kept and computed again."""
    config = MipsConfig(hidden_dim=64, num_layers=3, num_heads=4, ffn_dim=256, descriptors=[])
    found = {}
    for precision, stage in [("fp32", 0), ("fp32", 1), ("fp32", 3), ("bf16", 2), ("bf16", 3)]:
        for again in (False, True):

            def make(again: bool = again) -> MaskedAtomModel:
                torch.manual_seed(0)
                model = MaskedAtomModel(config)
                model.encoder.recomputes_layers = again
                return model

            trainer = TrainEngine(
                make,
                lambda parameters: make_adam(parameters, OptimizerConfig()),
                ranks,
                stage=stage,
                precision=precision,
            )
            losses = steps_of(trainer, polymers(), 4)
            found[f"{precision}-{stage}-{again}"] = [losses, toy.digest(trainer)]
            trainer.close()
    return found


def xl(ranks: Ranks, folder: Path) -> dict:
    """The widest preset with one layer: built in parts, compared, stepped."""
    overrides = ["model=xl", "model.num_layers=1", "model.descriptors=[]"]
    config = compose(PretrainConfig, "pretrain", overrides)

    def make() -> MaskedAtomModel:
        torch.manual_seed(5)
        model = MaskedAtomModel(config.model)
        built.append(sum(p.numel() for p in model.parameters()))
        return model

    built: list[int] = []
    whole = dict(make().named_parameters()) if ranks.is_main else {}
    trainer = TrainEngine(
        make,
        lambda parameters: make_adam(parameters, config.optimizer),
        ranks,
        stage=3,
        precision="fp32",
    )
    differing = [
        name
        for name, state in trainer.full_state()
        if ranks.is_main and not torch.equal(state["weight"], whole[name])
    ]
    size = sum(p.numel() for p in whole.values())
    whole.clear()
    losses = steps_of(trainer, polymers(), 2)
    held = trainer.state_bytes()
    trainer.close()
    return {
        "parameters": size,
        "whole_on_a_rank": built[-1],
        "differing": differing,
        "losses": losses,
        "held": asdict(held),
    }


def memory(ranks: Ranks, folder: Path) -> dict:
    """Bytes that a rank holds between two micro-batches, by precision and stage."""
    # Deep, as stage 2 keeps the gradient whole of the one weight that lies on the ranks' boundary.
    overrides = ["model=small", "model.descriptors=[]", "model.num_layers=18"]
    config = compose(PretrainConfig, "pretrain", overrides)
    found = {"parameters": count_parameters(config.model)}
    batch = polymers()
    for precision, stage in SETUPS:
        trainer = TrainEngine(
            lambda: MaskedAtomModel(config.model),
            lambda parameters: make_adam(parameters, config.optimizer),
            ranks,
            stage=stage,
            precision=precision,
            grad_accum_steps=2,
        )
        steps_of(trainer, batch, 1)
        for is_last in (False, True):
            loss = masked_atom_loss(trainer(batch), masked_classes(batch)).loss_sum
            trainer.backward(loss, 1, is_last=is_last)
            if not is_last:
                held = asdict(trainer.state_bytes())
        # Adam's moments and, in bf16, the sum of gradients are there before the step only.
        before = asdict(trainer.state_bytes())
        found[f"{precision}-{stage}"] = {key: max(held[key], before[key]) for key in held}
        trainer.close()
    return found


def save_and_go_on(ranks: Ranks, folder: Path) -> dict:
    """Ten steps at stage 2, a checkpoint, ten more; then the last ten again from the checkpoint."""
    trainer = toy.build(ranks, 2, dropout=0.2)
    first = toy.train(trainer, range(10))
    store(trainer, folder, 10)
    second = toy.train(trainer, range(10, 20))
    before = toy.digest(trainer)
    trainer.close()
    plain = toy.build(ranks, 2)
    toy.train(plain, range(10))
    store(plain, folder, 11)
    plain_second = toy.train(plain, range(10, 20))
    plain.close()

    again = toy.build(ranks, 2, dropout=0.2)
    stored = checkpoint.open_at(folder / "checkpoints", 10)
    again.load_full_state(stored.read, stored.state["adam_steps"])
    repeated = toy.train(again, range(10, 20))
    return {
        "first": asdict(first),
        "second": asdict(second),
        "repeated": asdict(repeated),
        "is_same_state": before == toy.digest(again),
        "plain_second": asdict(plain_second),
    }


def store(trainer: TrainEngine, folder: Path, step: int) -> None:
    tensors = [pair for pair in trainer.full_state() if trainer.ranks.is_main]
    steps = {"adam_steps": trainer.adam_steps()}
    trainer.ranks.share(lambda: checkpoint.save(folder / "checkpoints", step, tensors, {}, steps))


def load_elsewhere(ranks: Ranks, folder: Path) -> dict:
    """Continue what `save_and_go_on` left, at every stage and in bf16."""
    stored = checkpoint.open_at(folder / "checkpoints", 11)
    found = {}
    setups = [("fp32", stage, "none") for stage in range(4)]
    setups += [("bf16", 1, "none"), ("fp32", 2, "optimizer"), ("bf16", 3, "optimizer")]
    for precision, stage, where in setups:
        trainer = toy.build(ranks, stage, precision, offload=where)
        trainer.load_full_state(stored.read, stored.state["adam_steps"])
        found[f"{precision}-{stage}-{where}"] = asdict(toy.train(trainer, range(10, 20)))
        trainer.close()
    return found


def splits(ranks: Ranks, folder: Path) -> dict:
    """The same twenty steps, four micro-batches shared by the ranks (and one whole batch)."""
    found = {}
    for accum in {4 // ranks.world_size, 1}:
        trainer = toy.build(ranks, 1, accum=accum)
        found[str(accum)] = asdict(toy.train(trainer, range(20), accum=accum))
        trainer.close()
    return found


TASKS = {
    "stages": stages,
    "save_and_go_on": save_and_go_on,
    "load_elsewhere": load_elsewhere,
    "splits": splits,
    "offload": offload,
    "recompute": recompute,
    "replayed": replayed,
    "xl": xl,
    "memory": memory,
}

if __name__ == "__main__":
    name, target = sys.argv[1], Path(sys.argv[2])
    here = engine.start("fp32", 1)
    results = {task: TASKS[task](here, target) for task in name.split("+")}
    if here.is_main:
        for task, values in results.items():
            (target / f"{task}.json").write_text(json.dumps(values))
