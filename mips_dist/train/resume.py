"""Where a run stands: finding its newest checkpoint, loading it, saving the next."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mips_dist.errors import MipsError
from mips_dist.train import checkpoint
from mips_dist.train.engine import TrainEngine
from mips_dist.train.probe import Probe

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run


@dataclass(slots=True)
class TrainState:
    """Where the run is; everything else follows from it and the configuration.

    ``step`` optimizer steps done; ``num_skipped`` of them were not applied because a loss or
    gradient was not finite, the last ``skipped_in_a_row`` one after the other; ``validated`` the
    last step whose validation is on record.
    """

    step: int = 0
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    validated: int = 0


def find_checkpoint(run: "Run") -> int:
    """Return the step to continue from, 0 for a new run; refuse what is not of this run."""
    run.folder.check(run.config)
    newest = checkpoint.find_newest(run.folder.checkpoints, print)
    if newest is None:
        return 0
    identity = run.identity()
    for key in ("feature_schema", "model", "shards"):
        if newest.state.get(key) != identity[key]:
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


def is_finished(run: "Run", first_step: int) -> bool:
    """Whether nothing is left to do; rank 0 says so."""
    if first_step < run.config.num_steps or not run.folder.has_model():
        return False
    copy, model = run.folder.copy, run.folder.copy.named(run.folder.model)
    print(f"run_dir={copy} is finished: {first_step} steps, model {model}")
    run.folder.finish()
    return True


def restore(run: "Run", step: int, trainer: TrainEngine) -> tuple[TrainState, Probe]:
    """Load the checkpoint of a step into the engine, and let it prove itself; or begin at 0."""
    if step == 0:
        # Rank 0 reads; the shards may lie far away.
        corpus = run.corpus.manifest
        return TrainState(), run.ranks.share(
            lambda: Probe.first_of(run.config.shards, corpus, run.model)
        )
    stored = checkpoint.open_at(run.folder.checkpoints, step)
    try:
        state = TrainState(**stored.state["train"])
        trainer.load_full_state(stored.read, stored.state["adam_steps"])
        probe, known = Probe.from_tensors(stored.probe()), stored.state["probe"]
        loss, precision = float(known["loss"]), str(known["precision"])
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        # Its sums agree, so it was made so: not what an accident leaves.
        raise MipsError(
            f"checkpoint {stored.path} does not hold the state of this run ({error}); remove it to "
            "continue from the one before"
        ) from error
    run.ranks.together(lambda: probe.check(trainer, loss, precision, str(stored.path)))
    return state, probe


def save(run: "Run", trainer: TrainEngine, state: TrainState, probe: Probe) -> None:
    """Write a checkpoint: all ranks gather, rank 0 writes."""
    tensors = [pair for pair in trainer.full_state() if run.ranks.is_main]
    values = {
        "train": asdict(state),
        "adam_steps": trainer.adam_steps(),
        "probe": {"loss": probe.loss(trainer), "precision": run.config.precision},
        **run.identity(),
    }

    def write() -> None:
        # One that is on its way to a URL must not be dropped now.
        run.folder.copy.settle()
        checkpoint.save(run.folder.checkpoints, state.step, tensors, probe.tensors(), values)
        run.folder.copy.push()

    run.ranks.share(write)
