"""Models that come with the library, and the one place where a user's name for a model is read."""

from pathlib import Path

from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import CONFIG, SCALER

RELEASED_DIR = Path(__file__).resolve().parent.parent / "released"


def released_models() -> list[str]:
    """Return the names of the models that come with the library."""
    return sorted(path.parent.name for path in RELEASED_DIR.glob(f"*/{CONFIG}"))


def model_directory(name: str) -> Path:
    """Return the directory of a model that is given by its path or by the name of a released one.

    A released name means the released model wherever one stands; ``./NAME`` is a folder.

    Raises
    ------
    MipsError
        There is neither.
    """
    if name in released_models():
        return RELEASED_DIR / name
    if not Path(name).exists():
        known = ", ".join(released_models())
        raise MipsError(f"{name} is no model directory, and no released model; released: {known}")
    return Path(name)


def property_model(name: str) -> Path:
    """Return the directory of the released model of a property.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    known = [n for n in released_models() if (RELEASED_DIR / n / SCALER).is_file()]
    if name not in known:
        raise UsageError(
            f"no released model predicts '{name}'; there are: {', '.join(known) or 'none'}"
        )
    return RELEASED_DIR / name
