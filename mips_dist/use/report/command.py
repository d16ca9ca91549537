"""The command that a resolved configuration comes from."""

import re
import shlex
from dataclasses import asdict
from typing import Any

from mips_dist.config import compose, configs_dir
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.pretrain_config import PretrainConfig

_PLAIN = re.compile(r"[A-Za-z0-9_./%-]*[A-Za-z_./][A-Za-z0-9_./%-]*")
_WORDS_OF_HYDRA = {"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"}


def study_command(config: dict[str, Any]) -> str:
    """Return the shortest command that gives a study's configuration."""
    return _command("mips_dist/finetune.py", FinetuneConfig, "finetune", config)


def pretraining_command(config: dict[str, Any]) -> str:
    """Return the shortest command that gives a pre-training run's configuration."""
    return _command("mips_dist/pretrain.py", PretrainConfig, "pretrain", config)


def _command(script: str, schema: type[Any], name: str, config: dict[str, Any]) -> str:
    """Return a command: a model preset and what differs from it."""
    presets = sorted(path.stem for path in (configs_dir() / "model").glob("*.yaml"))
    candidates = []
    for preset in presets:
        chosen = [f"model={preset}"]
        default = _flat(asdict(compose(schema, name, chosen)))
        if default == _flat(asdict(compose(schema, name, []))):
            chosen = []
        wanted = _flat(config)
        chosen += [f"{k}={_value(v)}" for k, v in wanted.items() if default.get(k, ()) != v]
        candidates.append(chosen)
    overrides = min(candidates, key=len)
    return shlex.join(["python", script, *overrides])


def _value(value: Any) -> str:
    """Write a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_HYDRA:
        return value
    # In Hydra's quotes a backslash is one, unless a quote follows.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), value)
    return f"'{escaped}'"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
