"""The processes of a run: where one stands among them, and how they agree and leave together."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mips_dist.errors import MipsError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where one process stands among the processes of the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Add numbers over all ranks in float64; every rank gets the sums."""
        return self.total(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def total(self, values: Tensor) -> Tensor:
        """Add float64 tensors over all ranks, in place; on a GPU without waiting for the sums."""
        # float64 holds every count and every float32 sum exactly enough not to depend on the split.
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def share(self, make: Callable[[], T]) -> T:
        """Call a function on rank 0 and give every rank its result.

        When it raises a ``MipsError``, every rank leaves with that error's exit code, and only
        rank 0 prints the line.
        """
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except MipsError as error:
                dist.broadcast_object_list([None, error.exit_code], src=0)
                raise
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            leave_quietly(box[1])
        return box[0]

    def together(self, make: Callable[[], T]) -> T:
        """Call a function on every rank; when it fails on some, all leave and one says why."""
        value, error = None, None
        try:
            value = make()
        except MipsError as caught:
            error = caught
        speaker = torch.tensor(self.rank if error else self.world_size, device=self.device)
        dist.all_reduce(speaker, dist.ReduceOp.MIN)
        if error is not None and self.rank == int(speaker):
            raise error
        if int(speaker) < self.world_size:
            leave_quietly(MipsError.exit_code if error is None else error.exit_code)
        return cast(T, value)

    def fail(self, error: MipsError) -> None:
        """Leave with an error that every rank has found; rank 0 prints it."""
        if not self.is_main:
            leave_quietly(error.exit_code)
        raise error


def leave_quietly(exit_code: int) -> None:
    """Exit without a word, a moment after another rank has printed its line.

    A launcher ends all ranks as soon as one has failed; the delay lets the line come first.
    """
    time.sleep(2.0)
    sys.exit(exit_code)
