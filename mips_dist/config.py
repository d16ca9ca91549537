"""Hydra configuration to strict dataclasses."""

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from mips_dist.data.files import write_atomically
from mips_dist.errors import UsageError, guarded, needs_extra

# Entry files import this module before others, so that they too end in one line.
with needs_extra():
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

C = TypeVar("C")


def configs_dir() -> Path:
    """Return the folder of the YAML files: beside the package, or inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(schema: type[C], config_name: str, overrides: Sequence[str]) -> C:
    """Compose ``configs/<config_name>.yaml`` with Hydra overrides and check it against a dataclass.

    Parameters
    ----------
    schema
        Root dataclass; nested dataclasses stand beside the code that they configure.
    config_name
        Name of the YAML file without suffix.
    overrides
        Hydra overrides, such as ``["model=small", "zero.stage=2"]``.

    Returns
    -------
    An instance of ``schema``; no OmegaConf object gets further than this function. Where it has a
    field ``given``, that lists the keys of the overrides.

    Raises
    ------
    UsageError
        Unknown key, wrong type, unknown choice, or a value that the dataclass refuses.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    for override in overrides:
        if "=" not in override:
            raise UsageError(f"'{override}' is not a key=value override; see --help")
        key, _, value = override.partition("=")
        # Hydra's own keys do nothing here, but for hydra.searchpath: YAML files from elsewhere.
        if re.match(r"[+~]*hydra\b", key):
            raise UsageError(_unknown("key", key, _keys(schema)))
        # It may name what is secret in the environment, and the configuration is written to a file.
        if "${" in value:
            raise UsageError(
                f"{key}: a value with ${{...}} in it is not looked up here; let the shell expand it"
            )
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(configs_dir())):
            composed = hydra_compose(
                config_name=config_name, overrides=[_quoted(text, schema) for text in overrides]
            )
        # Hydra's own node is dropped here; what is left must be exactly the dataclass's fields.
        merged = OmegaConf.merge(OmegaConf.structured(schema), composed)
        if hasattr(schema, "given"):
            merged.given = [text.partition("=")[0] for text in overrides]
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(_one_line(error, schema, config_name)) from error


def replaced(config: C, values: Mapping[str, Any]) -> C:
    """Return a configuration with the values at some dotted keys replaced, and checked again.

    Raises
    ------
    UsageError
        An unknown key, a wrong type, or a value that the dataclass refuses.
    """
    node = OmegaConf.structured(config)
    try:
        for key, value in values.items():
            OmegaConf.update(node, key, value)
        return OmegaConf.to_object(node)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError) as error:
        raise UsageError(_one_line(error, type(config), "")) from error


def _quoted(override: str, schema: type) -> str:
    """Quote the value of a text key: paths may hold what Hydra's grammar does not allow, as in ä,b.

    Values that were quoted already stay as they are.
    """
    key, _, value = override.partition("=")
    is_text = any(field.name == key and field.type is str for field in fields(schema))
    if not is_text or value[:1] in ("'", '"'):
        return override
    # In Hydra's quotes a backslash is one, unless a quote follows.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), value)
    return f"{key}='{escaped}'"


def _one_line(error: Exception, schema: type, config_name: str) -> str:
    """Turn a configuration error into one line with the nearest names that exist."""
    text = str(error)
    if key := re.search(r"Could not override '([^']+)'", text):
        return _unknown("key", key[1], _keys(schema)) + f" (configs/{config_name}.yaml)"
    if choice := re.search(r"Could not find '([^/']+)/([^']+)'", text):
        files = (configs_dir() / choice[1]).glob("*.yaml")
        return _unknown(choice[1], choice[2], sorted(file.stem for file in files))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    where = getattr(error, "full_key", None)
    return f"config: {where}: {lines[0]}" if where else f"config: {lines[0]}"


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"unknown {kind} '{name}'; did you mean {' or '.join(near)}?"
    return f"unknown {kind} '{name}'; there are: {', '.join(known)}"


def _keys(schema: type, prefix: str = "") -> list[str]:
    """List the dotted keys of a schema."""
    keys: list[str] = []
    for field in fields(schema):
        inner = field.type
        if isinstance(inner, type) and is_dataclass(inner):
            keys += _keys(inner, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def save_resolved(config: Any, path: Path) -> None:
    """Write a configuration dataclass as YAML, every value resolved."""
    write_atomically(path, OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def help_text(schema: type, config_name: str) -> str:
    """List every key with its default, as ``--help`` prints it."""
    lines = [f"key=value overrides of configs/{config_name}.yaml:"]
    lines += _describe(compose(schema, config_name, []), prefix="")
    lines.append("flags: --help, --debug (show tracebacks)")
    return "\n".join(lines)


def _describe(node: Any, prefix: str) -> list[str]:
    lines: list[str] = []
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            lines += _describe(value, f"{prefix}{field.name}.")
        else:
            lines.append(f"  {prefix}{field.name}={value}")
    return lines


def run(
    main: Callable[[C], int | None],
    schema: type[C],
    config_name: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run an entry point: compose its configuration, call it, and turn errors into exit codes.

    Returns 0 when done, 1 failed, 2 usage, 130 interrupted (design.md, contracts). User errors are
    one line on stderr; ``--debug`` shows the traceback.
    """
    # Launchers append the local rank to argv; every rank reads it from the environment instead.
    arguments = [
        a
        for a in (sys.argv[1:] if argv is None else argv)
        if not a.startswith(("--local_rank", "--local-rank"))
    ]
    debug = "--debug" in arguments

    def call() -> int | None:
        if "--help" in arguments or "-h" in arguments:
            print(help_text(schema, config_name))
            return 0
        return main(compose(schema, config_name, [a for a in arguments if a != "--debug"]))

    return guarded(call, debug)
