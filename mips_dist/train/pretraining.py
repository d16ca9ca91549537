"""Pre-training by masked atoms: what comes before the loop, and the loop."""

import hashlib
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mips_dist.data.cache import ByteCache
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.prefetch import dead_workers_in_words
from mips_dist.data.reader import ShardReader
from mips_dist.data.schema import check_shards, model_schema
from mips_dist.data.shards import Manifest, read_manifest
from mips_dist.doctor.machine import memory
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import engine, launcher
from mips_dist.train.batch_plan import LARGEST_ON_CPU, BatchPlan, largest_on_gpu, plan_batches
from mips_dist.train.describe import describe, page
from mips_dist.train.engine import TrainEngine
from mips_dist.train.feed import Feed
from mips_dist.train.finish import finish
from mips_dist.train.flops import measure_peak, step_flops
from mips_dist.train.metrics import Recorder
from mips_dist.train.optim import make_adam
from mips_dist.train.plan import activation_bytes, count_parameters
from mips_dist.train.pretrain_config import (
    DECODED_SHARE,
    QUICKSTART_SHARDS,
    PretrainConfig,
    loader_workers,
)
from mips_dist.train.probe import Probe
from mips_dist.train.ranks import Ranks
from mips_dist.train.replay import Replay
from mips_dist.train.resume import TrainState, find_checkpoint, is_finished, restore, save
from mips_dist.train.run_dir import RunDir
from mips_dist.train.signals import StopSignal
from mips_dist.train.skipped import record_skipped
from mips_dist.train.step import PendingReport, count_skipped, train_step
from mips_dist.train.validation import Validation, validate
from mips_dist.train.watchdog import Watchdog
from mips_dist.train.zero import choose_stage

# Small packs waste less on pairs of different polymers, large ones keep a GPU busy.
_PACK_SIZE = {"cpu": 64, "cuda": 128}
_BATCHES_FOR_SHAPE = 32  # that show how large those to come will be


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
        RunDir(config.run_dir).path / ".build",
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
    pushed = ranks.share(run.folder.share)
    ranks.together(lambda: run.folder.follow(pushed))
    trainer = build_engine(run)
    loader = ranks.together(lambda: build_loader(run))
    state, probe = restore(run, first_step, trainer)
    peak = measure_peak(ranks, trainer.dtype)
    recorder = Recorder(
        run.folder.tensorboard, first_step, config.num_steps, ranks.is_main, peak, ranks.device
    )
    with StopSignal() as stop, recorder, dead_workers_in_words():
        for line in [*changes, *describe(run, loader, peak)]:
            recorder.say(line)
        recorder.text("run", page(run, loader, peak, first_step))
        code = train_loop(run, trainer, loader, state, probe, recorder, stop, watchdog)
    ranks.share(run.folder.share if code else run.folder.finish)
    return code


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
    feed, replay = open_feed(run, loader, state.step), build_replay(run, trainer)
    on_gpu = run.ranks.device.type == "cuda"
    pending: PendingReport | None = None
    is_stopped = False

    def settle() -> None:
        nonlocal pending, is_stopped
        if pending is None:
            return
        done, pending = pending, None
        report, is_stopped = done.read()
        recorder.step(done.step, report, step_flops(run.model, done.batches, run.ranks))
        if count_skipped(state, report, config.precision):
            in_a_row = state.skipped_in_a_row
            recorder.say(record_skipped(run, done.step, in_a_row, report, done.batches))

    # A run that was stopped at once, or killed at its end, owes what its last step asked for.
    result = validate_if_due(run, trainer, loader, state, recorder)
    while state.step < config.num_steps:
        watchdog.progress(state.step + 1)
        pending = train_step(run, trainer, feed, state, stop, settle, replay)
        is_last = state.step == config.num_steps
        is_saved = is_last or state.step % config.checkpoint_every == 0
        # A GPU has its next step before it is asked about this one.
        if not on_gpu or is_saved or is_validation_due(run, state):
            settle()
        if not is_stopped:
            result = validate_if_due(run, trainer, loader, state, recorder)
        if is_stopped or is_saved:
            # After the validation, so that what a checkpoint says of it is on the disk.
            settle()
            recorder.flush()
            began = time.monotonic()
            save(run, trainer, state, probe)
            recorder.checkpoint(state.step, time.monotonic() - began)
        if is_stopped:
            launcher.say_if_gone()
            recorder.say(f"stopped after step {state.step}; the same command continues from there")
            return 130
    finish(run, trainer, loader, state, recorder, result or validate(trainer, loader))
    return 0


def is_validation_due(run: Run, state: TrainState) -> bool:
    """Whether this step asks for a validation that was not made yet."""
    is_asked = state.step % run.config.validate_every == 0 or state.step == run.config.num_steps
    return is_asked and state.validated != state.step


def validate_if_due(
    run: Run,
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    recorder: Recorder,
) -> Validation | None:
    """Measure on the held-out polymers where it is due."""
    if not is_validation_due(run, state):
        return None
    result = validate(trainer, loader)
    recorder.validation(state.step, result)
    state.validated = state.step
    return result


# ---- before the loop


def prepare(config: PretrainConfig, ranks: Ranks) -> Run:
    """Check the configuration against the ranks and the shards."""
    corpus = ranks.share(lambda: open_corpus(config))
    available = {group["name"] for group in corpus.manifest.descriptors}
    groups = [name for name in config.model.descriptors if name in available]
    model = replace(config.model, descriptors=groups)
    plan = ranks.share(
        lambda: plan_batches(
            config.global_batch_size,
            config.micro_batch_size,
            ranks.world_size,
            largest_micro_batch(config, model, ranks.device),
        )
    )
    return Run(
        config=config,
        ranks=ranks,
        folder=RunDir(config.run_dir),
        plan=plan,
        corpus=corpus,
        model=model,
        # Every rank by itself: counting loads a second of torch that building the engine needs,
        # and the others would wait for rank 0 before they load it too.
        stage=ranks.together(
            lambda: choose_stage(config.zero, config.precision, count_parameters(model))
        ),
    )


def largest_micro_batch(config: PretrainConfig, model: MipsConfig, device: torch.device) -> int:
    """Return the polymers of a micro-batch that is chosen here, at most."""
    if device.type == "cpu":
        return LARGEST_ON_CPU
    one = activation_bytes(model, 1, config.precision, config.activation_checkpointing)
    return largest_on_gpu(torch.cuda.get_device_properties(device).total_memory, one)


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
        if run.ranks.device.type == "cuda" or config.compile:
            # What is replayed is compiled as a whole; the rare batch that is too large is not.
            module.encoder.run_packed(is_compiled=compiles_layers(run) and not replays(run))
        return module

    return TrainEngine(
        make_module,
        lambda parameters: make_adam(aligned_first(parameters), config.optimizer),
        run.ranks,
        stage=run.stage[0],
        precision=config.precision,
        zero=config.zero,
        micro_batch_size=run.plan.micro_batch_size,
        grad_accum_steps=run.plan.grad_accum_steps,
        clip_norm=config.optimizer.clip_norm,
    )


def aligned_first(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Put the few parameters of an odd size last.

    DeepSpeed lays all of them out one after the other; behind an odd one nothing begins at a
    multiple of 16 bytes, and a GPU takes products four times as slow.
    """
    return sorted(parameters, key=lambda parameter: parameter.numel() % 8 != 0)


def compiles_layers(run: Run) -> bool:
    """Whether the layers are compiled: ZeRO-3 needs its hooks inside them."""
    asked = run.config.compile
    if asked and run.stage[0] == 3:
        raise UsageError("compile=true works up to zero.stage=2; use compile=null")
    on_gpu = run.ranks.device.type == "cuda"
    return on_gpu and run.stage[0] < 3 if asked is None else asked


def replays(run: Run) -> bool:
    """Whether a GPU replays what it has recorded: where DeepSpeed keeps sums of gradients apart."""
    config = run.config
    return (
        run.ranks.device.type == "cuda"
        and compiles_layers(run)
        and config.precision == "bf16"
        and run.stage[0] == 1
        and config.zero.offload == "none"
        and not config.activation_checkpointing
        and not run.model.bond_path_bias
    )


def build_replay(run: Run, trainer: TrainEngine) -> Replay | None:
    """Build what trains padded batches, where a GPU replays it."""
    if not replays(run):
        return None
    twin = MaskedAtomModel(run.model).to(run.ranks.device, trainer.dtype)
    trainer.share_weights(twin)
    twin.encoder.run_packed(is_compiled=False)
    return Replay(trainer, twin, is_compiled=True)


def build_loader(run: Run) -> MaskedAtomLoader:
    """Open the shards; every rank reads the blocks it draws from and takes its positions."""
    config = run.config
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
    )


def open_feed(run: Run, loader: MaskedAtomLoader, first_step: int) -> Feed:
    """Let the batches from a step on come."""
    ranks = run.ranks
    on_gpu = ranks.device.type == "cuda"
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_workers = run.config.loader_workers
    if num_workers is None:
        # On a CPU they would take their time from the step, which takes far longer anyway.
        num_workers = loader_workers(len(os.sched_getaffinity(0)), local_size) if on_gpu else 0
    if num_workers:
        # Each would decode every window for its few steps of it.
        loader.share_blocks(int(DECODED_SHARE * memory()[1] / local_size))
    steps = range(first_step, run.config.num_steps)
    if replays(run):
        loader.pad_batches(steps, _BATCHES_FOR_SHAPE)
    return Feed(loader.steps(steps, num_workers), ranks.device)
