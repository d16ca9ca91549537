"""Pre-training by masked atoms: what comes before the loop, the loop, one step, the end."""

import hashlib
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.cache import ByteCache
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.order import hash_keys
from mips_dist.data.reader import ShardReader
from mips_dist.data.schema import check_shards, model_schema
from mips_dist.data.shards import Manifest, read_manifest
from mips_dist.errors import MipsError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import engine
from mips_dist.train.batch_plan import BatchPlan, plan_batches
from mips_dist.train.engine import TrainEngine
from mips_dist.train.metrics import Recorder, StepReport
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.optim import learning_rate, make_adam
from mips_dist.train.plan import count_parameters
from mips_dist.train.pretrain_config import QUICKSTART_SHARDS, PretrainConfig
from mips_dist.train.probe import Probe
from mips_dist.train.ranks import Ranks
from mips_dist.train.resume import TrainState, find_checkpoint, is_finished, restore, save
from mips_dist.train.run_dir import RunDir
from mips_dist.train.signals import StopSignal
from mips_dist.train.skipped import record_skipped
from mips_dist.train.validation import masked_classes, validate
from mips_dist.train.watchdog import Watchdog
from mips_dist.train.zero import choose_stage

# Small packs waste less on pairs of different polymers, large ones keep a GPU busy.
_PACK_SIZE = {"cpu": 64, "cuda": 128}
# Enough for the time in which a window is put together.
_PREFETCHED_STEPS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The shards: manifest, and a digest of their contents, the same wherever they lie."""

    manifest: Manifest
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What stays the same throughout a run.

    ``model`` is the configured model without the branches that the shards cannot feed; ``stage``
    the ZeRO stage that runs, with the reason.
    """

    config: PretrainConfig
    ranks: Ranks
    folder: RunDir
    plan: BatchPlan
    corpus: Corpus
    model: MipsConfig
    stage: tuple[int, str]

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
    ranks = engine.start(
        config.precision,
        config.num_threads,
        Path(config.run_dir) / ".build",
        config.timeout_minutes,
    )
    with Watchdog(ranks, 60 * config.timeout_minutes) as watchdog:
        return train_on(config, ranks, watchdog)


def train_on(config: PretrainConfig, ranks: Ranks, watchdog: Watchdog) -> int:
    """Train on ranks that have found each other; see `train`."""
    run = prepare(config, ranks)
    # Before looking at checkpoints: a process that is about to end may still write one.
    ranks.share(lambda: run.folder.lock(config))
    first_step = ranks.share(lambda: find_checkpoint(run))
    if ranks.share(lambda: is_finished(run, first_step)):
        return 0
    changes = ranks.share(lambda: run.folder.open(config))
    trainer = build_engine(run)
    loader = ranks.together(lambda: build_loader(run))
    state, probe = restore(run, first_step, trainer)
    recorder = Recorder(run.folder.tensorboard, first_step, config.num_steps, ranks.is_main)
    with StopSignal() as stop, recorder, closing(loader):
        for line in [*changes, *describe(run, loader)]:
            recorder.say(line)
        return train_loop(run, trainer, loader, state, probe, recorder, stop, watchdog)


def train_loop(
    run: Run,
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    probe: Probe,
    recorder: Recorder,
    stop: StopSignal,
    watchdog: Watchdog,
) -> int:
    """Step until the end or a signal, with checkpoints and validation; then leave the model."""
    config = run.config
    while state.step < config.num_steps:
        watchdog.progress(state.step + 1)
        report, is_stopped, batches = train_step(run, trainer, loader, state, stop)
        recorder.step(state.step, report)
        if state.skipped_in_a_row:
            recorder.say(record_skipped(run, state.step, state.skipped_in_a_row, report, batches))
        is_last = state.step == config.num_steps
        if is_stopped or is_last or state.step % config.checkpoint_every == 0:
            recorder.flush()
            save(run, trainer, state, probe)
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
    model = replace(config.model, descriptors=groups)
    return Run(
        config=config,
        ranks=ranks,
        folder=RunDir(Path(config.run_dir)),
        plan=plan,
        corpus=corpus,
        model=model,
        stage=ranks.share(
            lambda: choose_stage(config.zero, config.precision, count_parameters(model))
        ),
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


def build_engine(run: Run) -> TrainEngine:
    """Build the model from the seed and give it to DeepSpeed."""
    config = run.config
    torch.manual_seed(config.seed)

    def make_module() -> MaskedAtomModel:
        module = MaskedAtomModel(run.model)
        module.encoder.recomputes_layers = config.activation_checkpointing
        return module

    return TrainEngine(
        make_module,
        lambda parameters: make_adam(parameters, config.optimizer),
        run.ranks,
        stage=run.stage[0],
        precision=config.precision,
        zero=config.zero,
        micro_batch_size=run.plan.micro_batch_size,
        grad_accum_steps=run.plan.grad_accum_steps,
        clip_norm=config.optimizer.clip_norm,
    )


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


def describe(run: Run, loader: MaskedAtomLoader) -> list[str]:
    """Say what runs, what was derived, and what was left out."""
    config = run.config
    lines = [
        f"{len(loader.training_samples):,} polymers to train on, "
        f"{loader.num_held_out:,} held out ({len(loader.held_out_samples):,} for validation); "
        f"{run.ranks.device.type}, {config.precision}, ZeRO stage {run.stage[0]} ({run.stage[1]}), "
        f"offload {config.zero.offload}",
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
) -> tuple[StepReport, bool, list[PolymerBatch]]:
    """Do one optimizer step and advance the state.

    Returns
    -------
    What happened, and whether some rank was asked to stop, both the same on every rank; and this
    rank's micro-batches.
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
    return report, num_stopping > 0, batches


def seed_dropout(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Make dropout a function of these four numbers, so that a resumed run repeats it."""
    torch.manual_seed(int(hash_keys(seed, step, rank, micro_batch)[0]))


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
        try:
            save_bundle(
                run.folder.model,
                model,
                feature_schema=run.identity()["feature_schema"],
                metrics=metrics,
                trained_on=trained_on,
            )
        except (OSError, SafetensorError) as error:
            raise MipsError(
                f"the model cannot be written to {run.folder.model} ({error}); make room there "
                "and run the same command again"
            ) from error

    run.ranks.share(write)
    if result.loss is not None and result.class_entropy is not None:
        recorder.say(
            f"held-out masked-atom loss {result.loss:.4f} nats; knowing the class frequencies "
            f"alone: {result.class_entropy:.4f} (ratio {result.loss / result.class_entropy:.2f})"
        )
    recorder.say(f"model: {run.folder.model}")
