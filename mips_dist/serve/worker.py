"""The process that holds the models of a replica, and forks the one that does the chemistry.

RDKit is C++: a molecule may abort in it, loop in it, or eat all memory, and no Python handler gets
a word in. So the models are loaded once, into a process that does nothing else, and the work is
done in a fork of it, which a kernel timer, a limit on memory or a crash may end. The next fork is
there within milliseconds, models and all.
"""

import ctypes
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.config import configs_dir
from mips_dist.data.properties import read_property
from mips_dist.errors import MipsError, UsageError
from mips_dist.serve.pictures import KINDS, NoPicture, draw
from mips_dist.threads import one_thread
from mips_dist.use.prediction import REJECTED, Prediction, spell
from mips_dist.use.predictor import Predictor

OUT_OF_MEMORY_EXIT = 77
MEMORY_BYTES = 4 * 10**9  # that one polymer may take
# A timer of CPU time does not depend on how busy the machine is; this one ends what only waits.
WALL_SECONDS_PER_SECOND = 10
_REMEMBERED = 4096  # polymers whose answer is kept
_PR_SET_PDEATHSIG = 1


class Tasks:
    """What can be asked for."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._known = lru_cache(_REMEMBERED)(self._predict_canonical)

    def predict(self, text: str, properties: tuple[str, ...]) -> dict[str, Any]:
        """Return a row of `mips_dist.serve.api.Row`, without its text."""
        canonical, reason = spell(text)
        found = (
            Prediction(text, "", REJECTED, reason) if reason else self._known(canonical, properties)
        )
        return {
            "canonical": found.canonical,
            "status": found.status,
            "reason": found.reason,
            "values": {name: asdict(value) for name, value in found.values.items()},
        }

    def _predict_canonical(self, canonical: str, properties: tuple[str, ...]) -> Prediction:
        bundles = {name: self._predictor.bundles[name] for name in properties}
        return Predictor(bundles).predict_canonical(canonical)

    def picture(self, text: str, what: tuple[str, str]) -> tuple[str, str]:
        """Return an SVG of a kind, for a property; or no SVG and why there is none."""
        kind, name = what
        try:
            return draw(canonicalize(text.strip()), kind, self._predictor.bundles[name]), ""
        except (InvalidPolymer, NoPicture) as error:
            return "", str(error)


def describe(predictor: Predictor) -> list[dict[str, Any]]:
    """Return what `mips_dist.serve.api.ModelCard` says of each model."""
    return [
        {
            "property": name,
            "description": _description(name),
            "unit": bundle.scaler["unit"] if bundle.scaler else "",
            "r2": bundle.metrics.get("cross_validated_r2"),
            "rmse": bundle.metrics.get("cross_validated_rmse"),
            "protocol": bundle.metrics.get("protocol"),
            "model": bundle.metrics.get("model"),
            "num_parameters": sum(p.numel() for p in bundle.model.parameters()),
        }
        for name, bundle in predictor.bundles.items()
    ]


def _description(name: str) -> str:
    try:
        return read_property(configs_dir() / "property", name).description
    except UsageError:  # a property of the user's own
        return ""


def main() -> None:
    """Answer (seconds, task, arguments) by (word, value) until the other end closes.

    The words: "ready" (once, with what there is: models, pictures) or "failed" (message, exit
    code); then "done" (value), "error" (traceback), or "ended" (exit code of the fork; negative:
    the signal that ended it).
    """
    descriptor, parent, *directories = sys.argv[1:]
    connection = Connection(int(descriptor))
    die_with(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command to answer
    try:
        predictor = Predictor.open([Path(directory) for directory in directories])
    except MipsError as error:
        connection.send(("failed", (str(error), error.exit_code)))
        return
    predictor.predict(["*CC*"])  # what is loaded with the first polymer, every fork has then
    connection.send(("ready", {"models": describe(predictor), "pictures": KINDS}))
    zygote = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            _work(connection, Tasks(predictor), zygote)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        connection.send(("ended", os.waitstatus_to_exitcode(status)))


def die_with(parent: int) -> None:
    """Have this process killed when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # already gone
        os._exit(0)


def _work(connection: Connection, tasks: Tasks, zygote: int) -> NoReturn:
    die_with(zygote)
    _limit_memory()
    with one_thread():
        while True:
            try:
                seconds, task, arguments = connection.recv()
            except EOFError:
                os._exit(0)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, seconds * WALL_SECONDS_PER_SECOND)
            try:
                answer = "done", getattr(tasks, task)(*arguments)
            except MemoryError:
                os._exit(OUT_OF_MEMORY_EXIT)
            except Exception:
                answer = "error", traceback.format_exc()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    status = Path("/proc/self/status")
    if status.is_file():
        fields: Mapping[str, str] = dict(
            line.split(":", 1) for line in status.read_text().splitlines()
        )
        soft = int(fields["VmData"].split()[0]) * 1024 + MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    main()
