"""Pre-training by masked atoms: what comes before the loop, the loop, one step, the end."""

import hashlib
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mips_dist.data.cache import ByteCache
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.order import hash_keys
from mips_dist.data.reader import ShardReader
from mips_dist.data.schema import check_shards, model_schema
from mips_dist.data.shards import Manifest, read_manifest
from mips_dist.errors import MipsError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import checkpoint, engine
from mips_dist.train.batch_plan import BatchPlan, plan_batches
from mips_dist.train.engine import Ranks, TrainEngine
from mips_dist.train.metrics import Recorder, StepReport
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import learning_rate, make_adam
from mips_dist.train.pretrain_config import QUICKSTART_SHARDS, PretrainConfig
from mips_dist.train.run_dir import RunDir
from mips_dist.train.signals import StopSignal
from mips_dist.train.validation import masked_classes, validate

_MOST_SKIPPED_IN_A_ROW = 5
# Small packs waste less on pairs of different polymers, large ones keep a GPU busy.
_PACK_SIZE = {"cpu": 64, "cuda": 128}
# Enough for the time in which a window is put together.
_PREFETCHED_STEPS = 16


@dataclass(slots=True)
class TrainState:
    """Where the run is; everything else follows from it and the configuration.

    ``step`` optimizer steps done; ``num_skipped`` of them were not applied because a loss or
    gradient was not finite, the last ``skipped_in_a_row`` one after the other.
    """

    step: int = 0
    num_skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The shards: manifest, and a digest of their contents, the same wherever they lie."""

    manifest: Manifest
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What stays the same throughout a run.

    ``model`` is the configured model without the branches that the shards cannot feed.
    """

    config: PretrainConfig
    ranks: Ranks
    folder: RunDir
    plan: BatchPlan
    corpus: Corpus
    model: MipsConfig

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with."""
        return {
            "feature_schema": model_schema(self.model),
            "model": asdict(self.model),
            "shards": self.corpus.digest,
        }


def train(config: PretrainConfig) -> int:
    """Do, continue, or recognise as finished a pre-training run.

    Returns
    -------
    Exit code: 0 done, 130 stopped by a signal, after a checkpoint.
    """
    ranks = engine.start(config.precision, config.num_threads, Path(config.run_dir) / ".build")
    run = prepare(config, ranks)
    first_step = ranks.share(lambda: find_checkpoint(run))
    if ranks.share(lambda: is_finished(run, first_step)):
        return 0
    changes = ranks.share(lambda: run.folder.open(config))
    trainer, note = build_engine(run)
    loader = ranks.together(lambda: build_loader(run))
    state = restore(run, first_step, trainer)
    recorder = Recorder(run.folder.tensorboard, first_step, config.num_steps, ranks.is_main)
    with StopSignal() as stop, recorder, closing(loader):
        for line in [*changes, *describe(run, trainer, loader), *note]:
            recorder.say(line)
        return train_loop(run, trainer, loader, state, recorder, stop)


def train_loop(
    run: Run,
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    recorder: Recorder,
    stop: StopSignal,
) -> int:
    """Step until the end or a signal, with checkpoints and validation; then leave the model."""
    config = run.config
    while state.step < config.num_steps:
        report, is_stopped = train_step(run, trainer, loader, state, stop)
        recorder.step(state.step, report)
        guard_against_divergence(run, state, report, recorder)
        is_last = state.step == config.num_steps
        if is_stopped or is_last or state.step % config.checkpoint_every == 0:
            recorder.flush()
            save(run, trainer, state)
        if is_stopped:
            recorder.say(f"stopped after step {state.step}; the same command continues from there")
            return 130
        if state.step % config.validate_every == 0 and not is_last:
            recorder.validation(state.step, validate(trainer, loader).scalars())
    finish(run, trainer, loader, state, recorder)
    return 0


# ---- before the loop


def prepare(config: PretrainConfig, ranks: Ranks) -> Run:
    """Check the configuration against the ranks and the shards."""
    plan = ranks.share(
        lambda: plan_batches(config.global_batch_size, config.micro_batch_size, ranks.world_size)
    )
    corpus = ranks.share(lambda: open_corpus(config))
    available = {group["name"] for group in corpus.manifest.descriptors}
    groups = [name for name in config.model.descriptors if name in available]
    return Run(
        config=config,
        ranks=ranks,
        folder=RunDir(Path(config.run_dir)),
        plan=plan,
        corpus=corpus,
        model=replace(config.model, descriptors=groups),
    )


def open_corpus(config: PretrainConfig) -> Corpus:
    """Read the manifest and check that the shards fit this version and the model."""
    if config.shards == QUICKSTART_SHARDS and not Path(config.shards).is_dir():
        raise MipsError(
            f"no shards at {QUICKSTART_SHARDS}; make them with ./scripts/quickstart, or give "
            "shards=DIR made by `python -m preprocess input=FILE output=DIR`"
        )
    manifest = read_manifest(config.shards)
    check_shards(config.shards, manifest, model_schema(config.model))
    digest = hashlib.sha256("".join(s.sha256 for s in manifest.shards).encode()).hexdigest()
    return Corpus(manifest=manifest, digest=digest)


def find_checkpoint(run: Run) -> int:
    """Return the step to continue from, 0 for a new run; refuse what is not of this run."""
    run.folder.check(run.config)
    newest = checkpoint.find_newest(run.folder.checkpoints, print)
    if newest is None:
        return 0
    identity = run.identity()
    for key in ("feature_schema", "model", "shards"):
        if newest.state[key] != identity[key]:
            raise MipsError(
                f"checkpoint {newest.path} was made with another {key.replace('_', ' ')}; give the "
                "shards and the model that it was trained with, or another run_dir"
            )
    if newest.step > run.config.num_steps:
        raise MipsError(
            f"run_dir={run.folder.path} is at step {newest.step} already, "
            f"num_steps={run.config.num_steps} lies behind it; choose another run_dir"
        )
    return newest.step


def is_finished(run: Run, first_step: int) -> bool:
    """Whether nothing is left to do; rank 0 says so."""
    if first_step < run.config.num_steps or not run.folder.has_model():
        return False
    print(f"run_dir={run.folder.path} is finished: {first_step} steps, model {run.folder.model}")
    return True


def build_engine(run: Run) -> tuple[TrainEngine, list[str]]:
    """Build the model from the seed and give it to DeepSpeed; say what could not be had."""
    config = run.config
    torch.manual_seed(config.seed)
    stage, note = engine.settle_stage(config.zero.stage, config.precision)
    trainer = TrainEngine(
        MaskedAtomModel(run.model),
        lambda parameters: make_adam(parameters, config.optimizer),
        run.ranks,
        stage=stage,
        precision=config.precision,
        micro_batch_size=run.plan.micro_batch_size,
        grad_accum_steps=run.plan.grad_accum_steps,
        clip_norm=config.optimizer.clip_norm,
    )
    return trainer, [note] if note else []


def build_loader(run: Run) -> MaskedAtomLoader:
    """Open the shards; every rank reads the blocks it draws from and takes its positions."""
    config = run.config
    on_gpu = run.ranks.device.type == "cuda"
    reader = ShardReader(
        config.shards,
        run.corpus.manifest.shards,
        groups=run.model.descriptors,
        with_bonds=run.model.bond_path_bias,
        cache=ByteCache(run.folder.path / "shard_cache", int(config.cache_gb * 1e9)),
    )
    return MaskedAtomLoader(
        reader,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        grad_accum_steps=run.plan.grad_accum_steps,
        world_size=run.ranks.world_size,
        rank=run.ranks.rank,
        masking=config.masking,
        held_out_fraction=config.held_out_fraction,
        pack_size=_PACK_SIZE[run.ranks.device.type],
        # On a CPU the thread would take its time from the step, which takes far longer anyway.
        num_prefetched=_PREFETCHED_STEPS if on_gpu else 0,
        pin_memory=on_gpu,
    )


def restore(run: Run, step: int, trainer: TrainEngine) -> TrainState:
    """Load the checkpoint of a step into the engine, or begin at step 0."""
    if step == 0:
        return TrainState()
    stored = checkpoint.open_at(run.folder.checkpoints, step)
    trainer.load_full_state(stored.read, stored.state["adam_steps"])
    return TrainState(**stored.state["train"])


def describe(run: Run, trainer: TrainEngine, loader: MaskedAtomLoader) -> list[str]:
    """Say what runs, what was derived, and what was left out."""
    config = run.config
    lines = [
        f"{len(loader.training_samples):,} polymers to train on, "
        f"{loader.num_held_out:,} held out ({len(loader.held_out_samples):,} for validation); "
        f"{run.ranks.device.type}, {config.precision}, ZeRO stage {trainer.stage}",
        str(run.plan),
    ]
    missing = [name for name in config.model.descriptors if name not in run.model.descriptors]
    if missing:
        lines.append(f"the shards have no {', '.join(missing)}: the model runs without that branch")
    return lines


# ---- the loop


def train_step(
    run: Run,
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    stop: StopSignal,
) -> tuple[StepReport, bool]:
    """Do one optimizer step and advance the state.

    Returns
    -------
    What happened, and whether some rank was asked to stop; both are the same on every rank.
    """
    config, ranks = run.config, run.ranks
    started = time.perf_counter()
    batches = [
        batch.to(ranks.device, non_blocking=True) for batch in loader.micro_batches(state.step)
    ]
    classes = [masked_classes(batch) for batch in batches]
    data_wait = time.perf_counter() - started
    (num_masked,) = ranks.sum(sum(len(c) for c in classes))
    count = max(num_masked, 1.0)

    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for number, (batch, labels) in enumerate(zip(batches, classes, strict=True)):
        seed_dropout(config.seed, state.step, ranks.rank, number)
        loss = masked_atom_loss(trainer(batch), labels)
        trainer.backward(loss.loss_sum, count, is_last=number == len(batches) - 1)
        totals += torch.stack([loss.loss_sum.detach(), loss.num_correct])

    peak_lr = config.optimizer.peak_lr(run.model.hidden_dim)
    lr = learning_rate(state.step, config.num_steps, peak_lr, config.optimizer.warmup_fraction)
    result = trainer.step(lr)
    loss_sum, correct, num_stopping = ranks.sum(*totals.tolist(), stop.is_set)
    state.step += 1
    # fp16 skips steps while it looks for its loss scale; that alone is no divergence.
    is_searching = config.precision == "fp16" and math.isfinite(loss_sum)
    is_bad = not result.is_applied and not is_searching
    state.num_skipped += not result.is_applied
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if is_bad else 0
    report = StepReport(
        loss=loss_sum / count,
        accuracy=correct / count,
        lr=lr,
        grad_norm=result.grad_norm,
        is_applied=result.is_applied,
        polymers=config.global_batch_size,
        seconds=time.perf_counter() - started,
        data_wait=data_wait,
    )
    return report, num_stopping > 0


def seed_dropout(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Make dropout a function of these four numbers, so that a resumed run repeats it."""
    torch.manual_seed(int(hash_keys(seed, step, rank, micro_batch)[0]))


def guard_against_divergence(
    run: Run, state: TrainState, report: StepReport, recorder: Recorder
) -> None:
    """Say that a step was not applied; give up after five in a row."""
    if report.is_applied:
        return
    recorder.say(
        f"step {state.step}: loss {report.loss:.4g} or gradient norm {report.grad_norm:.4g} is not "
        "finite; no rank applied it"
    )
    if state.skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
        run.ranks.fail(
            MipsError(
                f"no finite gradient at {state.skipped_in_a_row} steps in a row, up to step "
                f"{state.step}; begin another run_dir with a lower optimizer.lr or precision=fp32"
            )
        )


def save(run: Run, trainer: TrainEngine, state: TrainState) -> None:
    """Write a checkpoint: all ranks gather, rank 0 writes."""
    tensors = [pair for pair in trainer.full_state() if run.ranks.is_main]
    values = {"train": asdict(state), "adam_steps": trainer.adam_steps(), **run.identity()}
    run.ranks.share(lambda: checkpoint.save(run.folder.checkpoints, state.step, tensors, values))


# ---- after the loop


def finish(
    run: Run,
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    recorder: Recorder,
) -> None:
    """Measure the held-out loss and write the model directory."""
    result = validate(trainer, loader)
    recorder.validation(state.step, result.scalars())
    weights = {name: whole["weight"] for name, whole in trainer.full_state() if run.ranks.is_main}
    metrics: dict[str, Any] = {f"held_out_{k}": v for k, v in result.scalars().items()}
    metrics |= {
        "held_out_masked_atoms": result.num_masked,
        "steps": state.step,
        "steps_skipped": state.num_skipped,
        "polymers_seen": state.step * run.config.global_batch_size,
        "precision": run.config.precision,
    }
    trained_on = (
        f"{len(loader.training_samples):,} polymers of {run.corpus.manifest.input['name']} "
        f"(shards sha256 {run.corpus.digest[:16]}), {state.step:,} steps of "
        f"{run.config.global_batch_size:,}."
    )

    def write() -> None:
        model = MaskedAtomModel(run.model)
        model.load_state_dict(weights)
        save_bundle(
            run.folder.model,
            model,
            feature_schema=run.identity()["feature_schema"],
            metrics=metrics,
            trained_on=trained_on,
        )

    run.ranks.share(write)
    if result.loss is not None and result.class_entropy is not None:
        recorder.say(
            f"held-out masked-atom loss {result.loss:.4f} nats; knowing the class frequencies "
            f"alone: {result.class_entropy:.4f} (ratio {result.loss / result.class_entropy:.2f})"
        )
    recorder.say(f"model: {run.folder.model}")
