"""Make a released model of a finished pre-training run: weights, card, and losses to check it by.

    python scripts/release_model.py run_dir=RUN shards=DIR check=DIR output=DIR [weights=bf16]
        [notes=FILE]

The losses are those of the weights as they are stored, computed in fp32 on one CPU thread, whatever
the run was computed in and on. ``check`` are shards of the first rows of the same corpus: on these
a test can repeat the measurement in seconds. ``weights=bf16`` halves the file.
"""

import sys
from pathlib import Path
from typing import cast

from held_out_loss import measure
from omegaconf import OmegaConf

from mips_dist.data.schema import known_schema, model_schema
from mips_dist.errors import MipsError, UsageError, guarded
from mips_dist.model.bundle import load_bundle, save_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.record import training_record

FROM_RUN = ("steps", "steps_skipped", "polymers_seen")


def release(run_dir: Path, shards: str, check: str, output: Path, weights: str, notes: str) -> None:
    """Measure the model of a run on both sets of shards and write it out."""
    bundle = load_bundle(run_dir / "model", known_schema())
    if not isinstance(bundle.model, MaskedAtomModel):
        raise MipsError(f"{run_dir} is no pre-training run")
    model = bundle.model
    if weights == "bf16":
        model.load_state_dict({k: w.bfloat16() for k, w in model.state_dict().items()})
    saved = OmegaConf.load(run_dir / "config.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PretrainConfig), saved))
    config = cast(PretrainConfig, config)
    config.shards = check
    checked, run, _ = measure(model, config)
    metrics = {name: bundle.metrics[name] for name in FROM_RUN}
    metrics |= {
        "check_loss": checked.loss,
        "check_masked_atoms": checked.num_masked,
        "check_rows": run.corpus.manifest.num_rows,
        "check_input_sha256": run.corpus.manifest.input["sha256"],
    }
    config.shards = shards
    result, run, loader = measure(model, config)
    metrics |= {f"held_out_{name}": value for name, value in result.scalars().items()}
    metrics["held_out_masked_atoms"] = result.num_masked
    record = training_record(run, loader)
    save_bundle(
        output,
        model.bfloat16() if weights == "bf16" else model,
        feature_schema=model_schema(model.config),
        metrics=metrics,
        trained_on=f"{record['num_training']:,} polymers of {record['shards']['input']}, "
        f"{metrics['steps']:,} steps of {config.global_batch_size:,} polymers in "
        f"{config.precision}. The losses below are those of these weights in fp32 on a CPU.",
        training=record,
        notes=notes or None,
    )
    print(f"{output}: held-out loss {result.loss:.4f}, check loss {checked.loss:.4f}")


def main() -> None:
    """Read the arguments."""
    arguments = dict(text.partition("=")[::2] for text in sys.argv[1:])
    needed = {"run_dir", "shards", "check", "output"}
    weights = arguments.get("weights", "fp32")
    if not needed <= set(arguments) <= needed | {"weights", "notes"} or weights not in (
        "fp32",
        "bf16",
    ):
        raise UsageError(
            "usage: python scripts/release_model.py run_dir=RUN shards=DIR check=DIR output=DIR "
            "[weights=fp32|bf16] [notes=FILE]"
        )
    notes = Path(arguments["notes"]).read_text(encoding="utf-8") if "notes" in arguments else ""
    release(
        Path(arguments["run_dir"]),
        arguments["shards"],
        arguments["check"],
        Path(arguments["output"]),
        weights,
        notes,
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
