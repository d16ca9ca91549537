"""What a pre-trained model says of its making: enough to measure its held-out loss again."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mips_dist.config import configs_dir
from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.model.mips import MipsConfig

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run

# Keys that say where and how a run was done, not what it made.
_LEFT_OUT = {
    "shards",
    "run_dir",
    "cache_gb",
    "model",
    "loader_workers",
    "checkpoint_every",
    "timeout_minutes",
}


def training_record(run: "Run", loader: MaskedAtomLoader) -> dict[str, Any]:
    """Return settings and data of a run, values for JSON.

    ``settings`` (keys as on the command line), ``preset`` (of model sizes, None where it is none of
    ours), ``shards`` (input, counts, checksums), ``num_training``, ``num_held_out`` and
    ``num_validated`` polymers.
    """
    settings: dict[str, Any] = {}
    for key, value in asdict(run.config).items():
        if isinstance(value, dict) and key not in _LEFT_OUT:
            settings |= {f"{key}.{inner}": of_inner for inner, of_inner in value.items()}
        elif key not in _LEFT_OUT:
            settings[key] = value
    settings["optimizer.lr"] = run.config.optimizer.peak_lr(run.model.hidden_dim)
    settings["zero.stage"] = run.stage[0]
    manifest = run.corpus.manifest
    counts = ("num_rows", "num_samples", "num_merged", "num_rejected", "stereo_dropped")
    return {
        "settings": settings,
        "preset": preset_of(run.model),
        "shards": {
            "input": manifest.input["name"],
            "input_sha256": manifest.input["sha256"],
            "content": manifest.content,
            "sha256": run.corpus.digest,
            "software": manifest.software,
            **{name: getattr(manifest, name) for name in counts},
        },
        "num_training": len(loader.training_samples),
        "num_held_out": loader.num_held_out,
        "num_validated": len(loader.held_out_samples),
    }


def preset_of(model: MipsConfig) -> str | None:
    """Return the preset that has a model's sizes, if one has."""
    for file in sorted((configs_dir() / "model").glob("*.yaml")):
        sizes = OmegaConf.load(file).items()
        if all(getattr(model, str(name)) == value for name, value in sizes):
            return file.stem
    return None
