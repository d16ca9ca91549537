"""What runs, what was derived and what was left out: lines for the user, a page for TensorBoard."""

import importlib.metadata
import platform
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf

from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.train.plan import count_parameters
from mips_dist.train.scaling import reduces_at_end

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run

_PACKAGES = ("torch", "deepspeed", "rdkit")


def describe(run: "Run", loader: MaskedAtomLoader, peak: float) -> list[str]:
    """Return the opening lines of a run.

    Parameters
    ----------
    run, loader
        What runs, on what.
    peak
        Operations per second of a matrix product, over all ranks.
    """
    config = run.config
    lines = [
        _corpus(loader),
        f"{count_parameters(run.model):,} parameters; {run.plan}",
        f"{run.ranks.device.type}, {config.precision}, ZeRO stage {run.stage[0]} ({run.stage[1]}), "
        f"offload {config.zero.offload}",
        *_communication(run),
        _peak(run, peak),
    ]
    missing = _missing(run)
    if missing:
        lines.append(f"the shards have no {missing}: the model runs without that branch")
    lines.append(f"curves: tensorboard --logdir {run.folder.tensorboard}")
    return lines


def page(run: "Run", loader: MaskedAtomLoader, peak: float, first_step: int) -> str:
    """Return the same in markdown, with the whole configuration."""
    config = run.config
    facts = {
        "model": f"{count_parameters(run.model):,} parameters"
        + (f", without the branch for {_missing(run)}" if _missing(run) else ""),
        "corpus": f"{run.corpus.manifest.input['name']}: {_corpus(loader)}; "
        f"shards sha256 {run.corpus.digest}",
        "batch": str(run.plan),
        "ZeRO": f"stage {run.stage[0]} ({run.stage[1]}), offload {config.zero.offload}",
        "device": f"{_device(run.ranks.device)}, {config.precision}; {_peak(run, peak)}",
        "with": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }
    rows = "\n".join(f"- **{name}** {value}" for name, value in facts.items())
    values = OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)
    return f"**From step {first_step + 1} on**\n\n{rows}\n\n```yaml\n{values}```\n"


def _corpus(loader: MaskedAtomLoader) -> str:
    return (
        f"{len(loader.training_samples):,} polymers to train on, "
        f"{loader.num_held_out:,} held out ({len(loader.held_out_samples):,} for validation)"
    )


def _communication(run: "Run") -> list[str]:
    """Say how gradients go to the other ranks, if there are any."""
    zero = run.config.zero
    if run.ranks.world_size == 1:
        return []
    if reduces_at_end(run.stage[0], run.config.precision, zero.offload == "optimizer"):
        return ["communication: gradients all at once, after the backward pass"]
    overlaps = run.ranks.device.type == "cuda"
    return [
        f"communication: gradients in buckets of {zero.bucket_elements:,} numbers, "
        + ("beside" if overlaps else "in turn with")
        + " the backward pass"
    ]


def _peak(run: "Run", peak: float) -> str:
    ranks = run.ranks.world_size
    return f"peak {peak / 1e9:,.0f} GFLOP/s, matrix products in {run.config.precision}" + (
        f" of {ranks} ranks together" if ranks > 1 else ""
    )


def _missing(run: "Run") -> str:
    wanted = run.config.model.descriptors
    return ", ".join(name for name in wanted if name not in run.model.descriptors)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), threads of a rank: {torch.get_num_threads()}"
