"""Checkpoints that survive anything: one folder each, complete or absent, checked before use.

``step-00000200/`` holds ``weights.safetensors`` (fp32, by parameter name), ``moments.safetensors``
(``exp_avg.NAME`` and ``exp_avg_sq.NAME``), ``probe.safetensors`` (see `Probe`) and ``state.json``
with the sha256 of them. Weights and moments do not depend on the number of ranks, the ZeRO stage or
the precision, and nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mips_dist.data.files import file_sha256, flush_to_disk
from mips_dist.errors import MipsError

FORMAT = 2
_PREFIX = "step-"
_STATE = "state.json"
_WEIGHTS = "weights.safetensors"
_MOMENTS = "moments.safetensors"
_PROBE = "probe.safetensors"
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq")
_KEPT = 2


class Checkpoint:
    """One complete checkpoint; tensors are read from the files when asked for.

    Attributes
    ----------
    path
        The folder.
    step
        Optimizer steps done.
    state
        What `save` was given as ``state``.
    """

    def __init__(self, path: Path, step: int, state: dict[str, Any]) -> None:
        self.path = path
        self.step = step
        self.state = state
        self._weights = safe_open(str(path / _WEIGHTS), "pt")
        self._moments = safe_open(str(path / _MOMENTS), "pt")

    def read(self, name: str) -> Mapping[str, Tensor]:
        """Return weight, exp_avg and exp_avg_sq of one parameter, whole, fp32."""
        moments = {key: self._moments.get_tensor(f"{key}.{name}") for key in _MOMENT_NAMES}
        return {"weight": self._weights.get_tensor(name), **moments}

    def probe(self) -> dict[str, Tensor]:
        """Return the tensors of the probe."""
        with safe_open(str(self.path / _PROBE), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def names(self) -> set[str]:
        """Return the names of the parameters."""
        return set(self._weights.keys())


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


def save(
    root: Path,
    step: int,
    tensors: Iterable[tuple[str, Mapping[str, Tensor]]],
    probe: Mapping[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write a checkpoint, then drop all but the newest two.

    It is written under another name, flushed to the disk and renamed, so whatever happens, a folder
    with a checkpoint's name is complete or was damaged later.

    Parameters
    ----------
    root
        Folder of the run's checkpoints.
    step
        Optimizer steps done.
    tensors
        Pairs of `TrainEngine.full_state`.
    probe
        Tensors of the probe.
    state
        Values for JSON.
    """
    final = root / f"{_PREFIX}{step:08d}"
    partial = root / f".{final.name}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, whole in tensors:
            weights[name] = whole["weight"].contiguous()
            moments |= {f"{key}.{name}": whole[key].contiguous() for key in _MOMENT_NAMES}
        save_file(weights, partial / _WEIGHTS)
        save_file(moments, partial / _MOMENTS)
        save_file(dict(probe), partial / _PROBE)
        files = {name: file_sha256(partial / name) for name in (_WEIGHTS, _MOMENTS, _PROBE)}
        body = {"format": FORMAT, "step": step, "files": files, "state": state}
        text = json.dumps({"sha256": _digest(body), **body}, indent=1)
        (partial / _STATE).write_text(text + "\n", encoding="utf-8")
        for name in (*files, _STATE, "."):
            flush_to_disk(partial / name)
        # Only a damaged one can be in the way: a complete one would have been resumed from.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        flush_to_disk(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise MipsError(
            f"the checkpoint of step {step} cannot be written to {root} ({error}); make room there "
            "and run the same command again, it continues from the one before"
        ) from error
    for old in _folders(root)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def find_newest(root: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; damaged ones are named and set aside.

    Raises
    ------
    MipsError
        There are checkpoints, but none of them is complete.
    """
    damaged = []
    for folder in _folders(root):
        try:
            checkpoint = _open(folder)
        except _Damaged as reason:
            report(f"checkpoint {folder} is damaged ({reason}); trying the one before")
            damaged.append(folder)
            continue
        for bad in damaged:
            # Under its own name it would be counted among the newest two and outlive a good one.
            os.replace(bad, _free_name(bad.with_name(f"damaged-{bad.name}")))
        return checkpoint
    if damaged:
        raise MipsError(
            f"no checkpoint in {root} is complete; restore one from a copy, or remove the run's "
            "folder to begin again"
        )
    return None


def open_at(root: Path, step: int) -> Checkpoint:
    """Open the checkpoint of a step that `find_newest` has checked on another rank."""
    folder = root / f"{_PREFIX}{step:08d}"
    return Checkpoint(folder, step, json.loads((folder / _STATE).read_text())["state"])


def _open(folder: Path) -> Checkpoint:
    try:
        body = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if body.pop("sha256") != _digest(body):
            raise _Damaged(f"{_STATE} was altered")
        if set(body["files"]) != {_WEIGHTS, _MOMENTS, _PROBE} or not (
            body["step"] == int(folder.name.removeprefix(_PREFIX))
            and isinstance(body["state"], dict)
        ):
            raise _Damaged(f"{_STATE} is of another checkpoint")
        for name, sha256 in body["files"].items():
            if file_sha256(folder / name) != sha256:
                raise _Damaged(f"{name} was altered or cut short")
        if body["format"] != FORMAT:
            raise MipsError(
                f"checkpoint {folder} has format {body['format']}, this version reads {FORMAT}; "
                "use the version that wrote it or another run_dir"
            )
        return Checkpoint(folder, body["step"], body["state"])
    except (
        *(OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError),
        SafetensorError,
    ) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error


def _folders(root: Path) -> list[Path]:
    """List the checkpoints, newest first."""
    return sorted(root.glob(f"{_PREFIX}[0-9]*"), reverse=True)


def _free_name(path: Path) -> Path:
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
