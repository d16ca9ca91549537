"""Batches on their way to the device, and numbers on their way back, without waiting for either."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mips_dist.data.batch import FlatBatch, PolymerBatch


class Feed:
    """The micro-batches of coming steps on the device; a GPU gets them while it computes.

    Parameters
    ----------
    steps
        From `MaskedAtomLoader.steps`.
    device
        Where the batches go.
    """

    def __init__(
        self, steps: Iterator[Sequence[PolymerBatch | FlatBatch]], device: torch.device
    ) -> None:
        self._steps = steps
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: list[PolymerBatch] | None = None
        self._waited = 0.0

    def take(self) -> tuple[list[PolymerBatch], float]:
        """Return the micro-batches of the next step, and the seconds that this thread waited."""
        if self._next is None:
            self._fetch()
        batches, self._next = self._next, None
        assert batches is not None
        if self._copies is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._copies)
            for batch in batches:
                # One tensor stands for all: they share their memory, which must not be given away
                # to the next copy before the computation has read it.
                batch.batch_index.record_stream(computing)
        waited, self._waited = self._waited, 0.0
        return batches, waited

    def ahead(self) -> None:
        """Let a GPU have the step after this one while it computes; on a CPU do nothing."""
        if self._copies is not None and self._next is None:
            self._fetch()

    def _fetch(self) -> None:
        started = time.perf_counter()
        made = next(self._steps, None)
        if made is not None:
            with torch.cuda.stream(self._copies):
                self._next = [batch.to(self._device, non_blocking=True) for batch in made]
        self._waited += time.perf_counter() - started


class Readback:
    """Numbers that the device still computes; copied to the CPU as soon as they are there.

    Parameters
    ----------
    values
        Any shape, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._is_there: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._is_there = torch.cuda.Event()
            self._is_there.record()

    def tolist(self) -> list[float]:
        """Return the numbers; waits for what was asked of the device before them, not after."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._values.tolist()
