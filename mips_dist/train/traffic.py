"""Count what ranks really say to each other: by collective, and by the kernel's own sockets."""

import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# torch's names of collectives, as its dispatcher sees them, and ours.
_KINDS = {
    "c10d::allreduce_": "all_reduce",
    "c10d::_allgather_base_": "all_gather",
    "c10d::allgather_": "all_gather",
    "c10d::_reduce_scatter_base_": "reduce_scatter",
    "c10d::reduce_scatter_": "reduce_scatter",
}
# Below this a collective carries counts and norms.
SMALL_BYTES = 128

# struct tcp_info of Linux: where u64 tcpi_bytes_sent stands.
_SENT, _LENGTH = 200, 208


class CollectiveCounter(TorchDispatchMode):
    """Counts every collective of torch that this thread starts, whoever calls it.

    Attributes
    ----------
    count, num_bytes
        By kind: how many, and bytes of the whole tensors. Those below `SMALL_BYTES` count as
        "small"; a kind that is not known here stands under torch's name.
    order
        Kinds in the order in which they were started.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()
        self.order: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note the collective and let it run."""
        if func.namespace == "c10d":
            name = func._schema.name
            # The whole tensor: what is gathered to, or scattered from.
            size = max((_bytes(argument) for argument in args), default=0)
            kind = _KINDS.get(name, name) if size >= SMALL_BYTES else "small"
            self.count[kind] += 1
            self.num_bytes[kind] += size
            self.order.append(kind)
        return func(*args, **(kwargs or {}))

    def wire_bytes(self, num_ranks: int) -> float:
        """Return what one rank sends when the ranks form a ring."""
        share = (num_ranks - 1) / num_ranks
        passes = {"all_reduce": 2, "small": 2, "all_gather": 1, "reduce_scatter": 1}
        return sum(passes[kind] * share * size for kind, size in self.num_bytes.items())


def _bytes(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return sum(_bytes(part) for part in argument)
    return 0


def sent_bytes() -> dict[int, int]:
    """Return what each TCP socket of this process has sent so far, by the socket's inode.

    The kernel counts it (TCP_INFO), payload without headers; loopback counts like any network.
    """
    sent = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or a socket of another kind
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as end:
                info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
            if len(info) == _LENGTH:
                (sent[status.st_ino],) = struct.unpack_from("=Q", info, _SENT)
    return sent


def sent_since(before: Mapping[int, int]) -> int:
    """Return the bytes that this process has sent since `sent_bytes` was asked."""
    return sum(sent - before.get(inode, 0) for inode, sent in sent_bytes().items())
