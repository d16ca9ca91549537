"""Models that come with the library, and the one place where a user's name for a model is read."""

from difflib import get_close_matches
from pathlib import Path

from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import CONFIG, SCALER

RELEASED_DIR = Path(__file__).resolve().parent.parent / "released"


def released_models() -> list[str]:
    """Return the names of the models that come with the library."""
    return sorted(path.parent.name for path in RELEASED_DIR.glob(f"*/{CONFIG}"))


def model_directory(name: str) -> Path:
    """Return the directory of a model that is given by path, URL, or the name of a released one.

    A released name means the released model wherever one stands; ``./NAME`` is a folder.

    Raises
    ------
    MipsError
        There is neither.
    """
    if name in released_models():
        return RELEASED_DIR / name
    if "://" in name:
        return _fetched(name)
    if not Path(name).exists():
        known = ", ".join(released_models())
        raise MipsError(f"{name} is no model directory, and no released model; released: {known}")
    return Path(name)


def property_model(name: str) -> Path:
    """Return the directory of the released model of a property.

    Raises
    ------
    UsageError
        There is none of that name; the nearest names come first.
    """
    known = [n for n in released_models() if (RELEASED_DIR / n / SCALER).is_file()]
    if name not in known:
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UsageError(
            f"no released model predicts '{name}'{meant}; there are: {', '.join(known) or 'none'}"
        )
    return RELEASED_DIR / name


def property_directory(name: str | Path) -> Path:
    """Return the directory of a property model that is given by released name, path or URL.

    A released name means the released model, as in `model_directory`; a `Path` is a directory.

    Raises
    ------
    UsageError
        A name that is neither a released property nor a directory.
    """
    if isinstance(name, str) and "://" in name:
        return _fetched(name)
    is_path = isinstance(name, Path) or (name not in released_models() and Path(name).is_dir())
    return Path(name) if is_path else property_model(str(name))


def _fetched(url: str) -> Path:
    from mips_dist.model.fetched import fetched_model  # with packages that few predictions need

    return fetched_model(url)
