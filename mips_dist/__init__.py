"""mips_dist: properties of polymers from the exact graph of the infinite chain.

`import mips_dist as mips; mips.load("egc").predict(["*CC*"])`. Nothing is imported before it is
asked for, so that every module of the package stays as light as it is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mips_dist.train.regressor import PolymerRegressor as PolymerRegressor
    from mips_dist.train.regressor import canonical_groups as canonical_groups
    from mips_dist.use.embed import embed as embed
    from mips_dist.use.predictor import load as load

_MODULE_OF = {
    "PolymerRegressor": "mips_dist.train.regressor",
    "canonical_groups": "mips_dist.train.regressor",
    "embed": "mips_dist.use.embed",
    "load": "mips_dist.use.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mips_dist' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
