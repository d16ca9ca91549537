"""Batches of coming steps, made by worker processes while the last ones are used."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch.utils.data import DataLoader, Dataset

from mips_dist.data.batch import FlatBatch, PolymerBatch
from mips_dist.errors import MipsError

_STEPS_PER_WORKER = 4  # that each keeps ready


class _Steps(Dataset[list[FlatBatch] | MipsError]):
    """A function of the step, as torch's loader wants it."""

    def __init__(self, make: Callable[[int], Sequence[PolymerBatch]]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> list[FlatBatch] | MipsError:
        try:
            return [FlatBatch.of(batch) for batch in self._make(step)]
        except MipsError as error:  # raised, it would come through as a traceback
            return error


def prefetch(
    make: Callable[[int], Sequence[PolymerBatch]],
    steps: range,
    num_workers: int,
) -> Iterator[list[FlatBatch]]:
    """Yield the batches of each step in order; closing the generator ends the workers.

    Parameters
    ----------
    make
        A function of the step alone; it runs in the forked workers.
    steps
        Steps to make.
    num_workers
        Processes, at least one; each makes every so many-th step.

    Raises
    ------
    MipsError
        What `make` raised, where its step is due.
    """
    # Forked, as nothing in them touches the GPU: they start at once and share what was read.
    loader = DataLoader(
        _Steps(make),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        prefetch_factor=_STEPS_PER_WORKER,
        multiprocessing_context="fork",
        worker_init_fn=_leave_signals_to_the_rank,
    )
    for made in loader:
        if isinstance(made, MipsError):
            raise made
        yield made


def _leave_signals_to_the_rank(worker: int) -> None:
    """Stay out of reach of signals that terminals and launchers send to a whole group of processes.

    The rank finishes its step and saves. Its workers end when it asks them to, or is gone.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how torch and Python end them at last


@contextmanager
def dead_workers_in_words() -> Iterator[None]:
    """Turn torch's report of a dead worker, which may come at any moment, into one line."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The last two where it died while it handed over a batch.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise MipsError(
            f"a process that reads shards died ({' '.join(str(error).split())}); if memory ran "
            "out, lower loader_workers; the same command continues from the last checkpoint"
        ) from error
