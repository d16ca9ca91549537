"""The folder of a pre-training run: begun, continued or refused, never mixed."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from mips_dist.config import save_resolved
from mips_dist.data.lock import lock_file
from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import MipsError
from mips_dist.model.bundle import is_complete

_CONFIG = "config.yaml"
_LOCK = ".lock"
# What a process that was killed at its start leaves in a folder that is no run yet.
_BEGUN = {_LOCK, f".{_CONFIG}.partial", ".build"}

# Behind a URL: caches stay on their machine, and nobody but the run itself reads checkpoints.
_STAYS = ("shard_cache/*",)
_UNPUBLISHED = ("checkpoints/*",)

# Keys of PretrainConfig that a continued run may change; every other one would mix two runs.
# `shards` is compared by content, not by path.
_CHANGEABLE = {
    "run_dir",
    "shards",
    "cache_gb",
    "num_steps",
    "checkpoint_every",
    "validate_every",
    "micro_batch_size",
    "precision",
    "activation_checkpointing",
    "compile",
    "zero",
    "num_threads",
    "loader_workers",
    "timeout_minutes",
}


class RunDir:
    """Paths of a run, and the lock that keeps a second process out.

    Parameters
    ----------
    where
        Local folder, or a URL; `path` is then that of this machine's copy.
    """

    def __init__(self, where: str | Path) -> None:
        self.copy = WorkingCopy(str(where), stays=_STAYS)
        self.path = path = self.copy.path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.model = path / "model"
        self._lock: IO[str] | None = None

    def lock(self, config: Any) -> None:
        """Create the folder, or check that it is of this run, and keep others out; rank 0 only.

        A process that is about to end is waited for, some seconds.

        Raises
        ------
        MipsError
            The folder is of something else, of another run, or in use.
        """
        self.copy.__enter__()
        self.check(config)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self.path / _LOCK, f"run_dir={self.path}", "training in")

    def open(self, config: Any) -> list[str]:
        """Begin or continue the run in a folder that `lock` has locked; rank 0 only.

        Parameters
        ----------
        config
            The `PretrainConfig`.

        Returns
        -------
        Lines about keys that changed since the last time.

        Raises
        ------
        MipsError
            The folder is of something else or of another run.
        """
        stored = self._stored_config()
        changes = [] if stored is None else _compare(stored, asdict(config), self.path)
        save_resolved(config, self.path / _CONFIG)
        return changes

    def share(self) -> int:
        """Bring what only this host has to the URL; return what `follow` is to be called with.

        Rank 0 only, like `lock`.
        """
        self.copy.push()
        return self.copy.settle()

    def follow(self, number: int) -> None:
        """Have on this host what rank 0 goes on from; one rank of each host."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self.copy.follow(number)

    def finish(self) -> None:
        """Leave the last state at the URL, with the files that others read."""
        self.copy.finish(_UNPUBLISHED)

    def has_model(self) -> bool:
        """Whether the run has left its model, undamaged."""
        return is_complete(self.model)

    def check(self, config: Any) -> None:
        """Raise `MipsError` where `open` would refuse the configuration, but write nothing."""
        stored = self._stored_config()
        if stored is not None:
            _compare(stored, asdict(config), self.path)

    def _stored_config(self) -> dict[str, Any] | None:
        path = self.path / _CONFIG
        if not path.is_file():
            if self.path.is_dir() and any(p.name not in _BEGUN for p in self.path.iterdir()):
                raise MipsError(
                    f"run_dir={self.path} exists and is no pre-training run; choose another"
                )
            if self.path.exists() and not self.path.is_dir():
                raise MipsError(f"run_dir={self.path} is a file; choose another")
            return None
        try:
            values = OmegaConf.to_container(OmegaConf.load(path))
        except Exception as error:  # YAML and OmegaConf have no common base class
            reason = " ".join(str(error).split())
            raise MipsError(f"{path} cannot be read ({reason}); choose another run_dir") from error
        if not isinstance(values, dict):
            raise MipsError(f"{path} is no configuration; choose another run_dir")
        return {str(key): value for key, value in values.items()}


def _compare(stored: dict[str, Any], wanted: dict[str, Any], path: Path) -> list[str]:
    changes = []
    old, new = _flatten(stored), _flatten(wanted)
    for key in sorted(old.keys() & new.keys()):
        if old[key] == new[key] or key in ("run_dir", "shards"):
            continue
        if key.split(".")[0] not in _CHANGEABLE:
            raise MipsError(
                f"run_dir={path} belongs to a run with {key}={old[key]}, not {key}={new[key]}; "
                "choose another run_dir, or the same value to continue it"
            )
        changes.append(f"continuing with {key}={new[key]} (was {old[key]})")
    return changes


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
