"""Models that come with the library, and the one place where a user's name for a model is read."""

from pathlib import Path

from mips_dist.errors import MipsError
from mips_dist.model.bundle import CONFIG

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
