"""Copy the models of a finished study to where `mips predict -p NAME` finds them, weights in fp16.

    python scripts/release_properties.py run_dir=RUN [output=mips_dist/released]

Half precision halves the file; the largest change of a prediction over the property's own polymers
is printed, in standard deviations of the property.
"""

import sys
from pathlib import Path

import torch

from mips_dist.data.batch import collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.schema import known_schema
from mips_dist.data.shards import load
from mips_dist.errors import MipsError, UsageError, guarded
from mips_dist.model.bundle import CONFIG, load_bundle, save_bundle
from mips_dist.model.mips import PropertyModel
from mips_dist.model.released import RELEASED_DIR

MAX_MEBIBYTES = 5.0


def release(run_dir: Path, output: Path) -> None:
    """Release every model of a study."""
    found = sorted(path.parent for path in (run_dir / "models").glob(f"*/{CONFIG}"))
    if not found:
        raise MipsError(f"{run_dir} holds no models; run the study with save_model=true")
    block = load(run_dir / "shards", with_bonds=False, with_conformer=False)
    for directory in found:
        bundle = load_bundle(directory, known_schema())
        assert bundle.scaler is not None
        assert isinstance(bundle.model, PropertyModel)
        before = predict(bundle.model, block)
        halved = {name: w.half() for name, w in bundle.model.state_dict().items()}
        bundle.model.load_state_dict(halved)
        change = (predict(bundle.model, block) - before).abs().max().item()
        name = bundle.scaler["property"]
        card = (directory / "README.md").read_text(encoding="utf-8")
        save_bundle(
            output / name,
            bundle.model.half(),
            feature_schema=bundle.feature_schema,
            metrics=bundle.metrics,
            trained_on=card.split("## Trained on\n")[1].split("\n")[0],
            scaler=bundle.scaler,
            partner=bundle.partner,
            calibration=bundle.calibration,
        )
        size = sum(path.stat().st_size for path in (output / name).iterdir()) / 2**20
        print(f"{name}: {size:.2f} MiB, largest change by fp16 {change:.4f} SD")
        if size > MAX_MEBIBYTES:
            raise MipsError(f"{output / name} has {size:.2f} MiB, more than {MAX_MEBIBYTES:g}")


def predict(model: PropertyModel, block: PolymerBlock) -> torch.Tensor:
    """Return the z-scores of all polymers."""
    size = 256
    parts = [
        range(i, min(i + size, len(block.psmiles))) for i in range(0, len(block.psmiles), size)
    ]
    with torch.inference_mode():
        batches = (collate(block.select(list(part)), 64) for part in parts)
        return torch.cat([model(batch)[:, 0] for batch in batches])


def main() -> None:
    """Read the arguments."""
    arguments = dict(text.partition("=")[::2] for text in sys.argv[1:])
    if not {"run_dir"} <= set(arguments) <= {"run_dir", "output"}:
        raise UsageError(
            "usage: python scripts/release_properties.py run_dir=RUN [output=mips_dist/released]"
        )
    release(Path(arguments["run_dir"]), Path(arguments.get("output", RELEASED_DIR)))


if __name__ == "__main__":
    sys.exit(guarded(main))
