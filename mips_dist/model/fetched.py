"""Model directories behind URLs, brought to this machine."""

import fcntl
import json
from pathlib import Path

from mips_dist.data.files import write_atomically
from mips_dist.data.transfer import Range, fetch
from mips_dist.data.working_copy import scratch_dir
from mips_dist.model.bundle import CONFIG, is_complete, needed_files


def fetched_model(url: str) -> Path:
    """Return a local directory with the model at a URL; what is here already is not sent again.

    Several processes may ask at the same time. The files are checked by who loads them.

    Raises
    ------
    MipsError
        There is no model, or it cannot be had.
    """
    home = scratch_dir(url)
    folder = home / "model"
    folder.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (config,) = fetch(url, [Range(CONFIG)])
        is_known = (folder / CONFIG).is_file() and (folder / CONFIG).read_bytes() == config
        if is_known and is_complete(folder):
            return folder
        try:
            names = needed_files(json.loads(config))
        except (ValueError, AttributeError):
            names = []  # no model; loading it says so
        for name, data in zip(names, fetch(url, [Range(name) for name in names]), strict=True):
            write_atomically(folder / name, data)
        write_atomically(folder / CONFIG, config)
    return folder
