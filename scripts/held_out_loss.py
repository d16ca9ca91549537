"""Measure a pre-trained model's held-out loss again and compare it with its card.

    python scripts/held_out_loss.py model=mips-small shards=DIR

``model`` is a directory or the name of a released model, ``shards`` the corpus of its card, or the
first rows of it that the card has a loss for too. The held-out polymers, their masks and the sums
are those of training; products are fp32 on one CPU thread. Exit 1 where the two differ by more than
1e-5 of the loss.
"""

import sys
from typing import cast

import torch
import torch.distributed as dist

from mips_dist.data.loader import MaskedAtomLoader
from mips_dist.data.masking import MaskingConfig
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError, guarded
from mips_dist.model.bundle import Bundle, load_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.model.released import model_directory
from mips_dist.train import pretraining
from mips_dist.train.engine import TrainEngine
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.ranks import Ranks
from mips_dist.train.validation import Validation, validate

TOLERANCE = 1e-5  # relative; what another kind of processor may change


class Evaluator:
    """As much of a training engine as validation asks for, without DeepSpeed: one rank, no step."""

    def __init__(self, model: MaskedAtomModel) -> None:
        torch.set_num_threads(1)
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        device = torch.device("cpu")
        self.ranks = Ranks(rank=0, world_size=1, local_rank=0, device=device)
        self.module = model


def measure(
    model: MaskedAtomModel, config: PretrainConfig
) -> tuple[Validation, pretraining.Run, MaskedAtomLoader]:
    """Validate as at the end of the run that has this configuration."""
    evaluator = Evaluator(model)
    run = pretraining.prepare(config, evaluator.ranks)
    if run.model.descriptors != model.config.descriptors:
        raise MipsError(
            f"shards {config.shards} have not the descriptors of the model "
            f"({', '.join(model.config.descriptors)}); give the shards that it was trained on"
        )
    loader = pretraining.build_loader(run)
    return validate(cast(TrainEngine, evaluator), loader), run, loader


def training_config(bundle: Bundle, shards: str) -> PretrainConfig:
    """Return a configuration with which the same polymers are held out, and masked alike."""
    if bundle.training is None or not isinstance(bundle.model, MaskedAtomModel):
        raise MipsError("the model does not say how it was pre-trained; give a pre-trained one")
    settings = bundle.training["settings"]
    masking = {
        key.removeprefix("masking."): value
        for key, value in settings.items()
        if key.startswith("masking.")
    }
    return PretrainConfig(
        shards=shards,
        model=bundle.model.config,
        masking=MaskingConfig(**masking),
        **{name: settings[name] for name in ("seed", "held_out_fraction", "global_batch_size")},
    )


def compare(model: str, shards: str) -> int:
    """Print both losses and their difference; return the exit code."""
    bundle = load_bundle(model_directory(model), known_schema())
    config = training_config(bundle, shards)
    assert isinstance(bundle.model, MaskedAtomModel)
    assert bundle.training is not None
    result, run, _ = measure(bundle.model, config)
    source = run.corpus.manifest.input
    known = {
        bundle.training["shards"]["input_sha256"]: "held_out_loss",
        bundle.metrics.get("check_input_sha256"): "check_loss",
    }
    if source["sha256"] not in known:
        raise MipsError(
            f"the card of {model} has no loss for {source['name']} (sha256 {source['sha256']}); "
            f"it has one for {bundle.training['shards']['input']} (sha256 {next(iter(known))})"
        )
    name = known[source["sha256"]]
    stated = bundle.metrics[name]
    assert result.loss is not None
    difference = abs(result.loss - stated) / stated
    print(f"computed {result.loss:.8f} nats per masked atom ({result.num_masked:,} atoms)")
    print(f"card     {stated:.8f} ({name})")
    print(f"relative difference {difference:.1e}, at most {TOLERANCE:.0e} allowed")
    return int(difference > TOLERANCE)


def main() -> int:
    """Read the two arguments."""
    arguments = dict(text.partition("=")[::2] for text in sys.argv[1:])
    if set(arguments) != {"model", "shards"}:
        raise UsageError("usage: python scripts/held_out_loss.py model=DIR_OR_NAME shards=DIR")
    return compare(**arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
