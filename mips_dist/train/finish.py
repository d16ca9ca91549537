"""What a finished pre-training run leaves: the model directory."""

from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.errors import MipsError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.engine import TrainEngine
from mips_dist.train.metrics import Recorder
from mips_dist.train.record import training_record
from mips_dist.train.resume import TrainState
from mips_dist.train.validation import Validation

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run


def finish(
    run: "Run",
    trainer: TrainEngine,
    loader: MaskedAtomLoader,
    state: TrainState,
    recorder: Recorder,
    result: Validation,
) -> None:
    """Write the model directory, with what was measured on the held-out polymers."""
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

    record = training_record(run, loader)

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
                training=record,
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
    recorder.say(f"model: {run.folder.copy.named(run.folder.model)}")
