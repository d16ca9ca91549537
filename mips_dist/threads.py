"""One thread for every library: sums run in one order, and processes do not compete for cores."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in torch, in the linear algebra of numpy and in OpenMP; restore afterwards."""
    num_threads = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(num_threads)
