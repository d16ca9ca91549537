"""What a host does for the others that look at it: says what it is, listens, connects, computes.

One object on every host: as a Ray actor, or behind ssh as ``python -m mips_dist.doctor peer``,
which reads a JSON call from each line and answers with a line.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mips_dist.doctor.finding import to_json
from mips_dist.doctor.machine import memory, probe
from mips_dist.doctor.packages import installed

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_REDUCE = 60.0  # torch is imported meanwhile
_COMPARED = ("mips-dist", "torch", "numpy", "rdkit", "ray", "deepspeed")
_ROUNDS = 3  # of connecting; the quickest counts
_MARK = b"mips"


class Peer:
    """A host as others see it."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def clock(self) -> float:
        """Return the seconds since 1970."""
        return time.time()

    def facts(self) -> dict[str, Any]:
        """Return name, versions, cores, memory, number of GPUs, and findings about the machine."""
        return {
            "host": platform.node(),
            "versions": {"python": platform.python_version()}
            | {n: installed(n) for n in _COMPARED},
            "cores": len(os.sched_getaffinity(0)),
            "memory": memory()[0],
            "gpus": len(list(Path("/dev").glob("nvidia[0-9]*"))),
            "findings": to_json(probe()),
        }

    def listen(self) -> int:
        """Answer whoever connects, from now on; return the port."""
        listener = socket.create_server(("", 0))
        self._listener = listener

        def answer() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(_MARK)

        threading.Thread(target=answer, daemon=True).start()
        return int(listener.getsockname()[1])

    def reach(self, others: Sequence[Sequence[Any]]) -> list[float | str]:
        """Connect to every (address, port); return seconds of each, or why it failed."""
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(lambda other: _connect(*other), others))

    def free_port(self) -> int:
        """Return a port that nobody listens at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def all_reduce(self, backend: str, rank: int, size: int, address: str, port: int) -> str:
        """Be one rank of an all-reduce; return why it failed, nothing where it did not."""
        values = [backend, str(rank), str(size), address, str(port)]
        command = [sys.executable, "-P", "-m", "mips_dist.doctor", "all_reduce", *values]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS_TO_REDUCE, errors="replace"
            )
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS_TO_REDUCE:g} s"
        if done.returncode == 0:
            return ""
        return (done.stderr.strip().splitlines() or ["it was killed"])[-1][:200]


def _connect(address: str, port: int) -> float | str:
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        try:
            with socket.create_connection((address, port), timeout=SECONDS_TO_CONNECT) as line:
                if line.recv(len(_MARK)) != _MARK:
                    return "another program answers"
        except OSError as error:
            return error.strerror or str(error)
        best = min(best, time.perf_counter() - start)
    return best


def serve_peer() -> None:
    """Answer the calls of standard input, until it ends."""
    peer = Peer()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(peer, method)(*arguments)), flush=True)


def all_reduce(backend: str, rank: int, size: int, address: str, port: int) -> None:
    """Sum the numbers of all ranks, over the interfaces that training would take."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    device = "cuda" if backend == "nccl" else "cpu"
    where = f"tcp://{address}:{port}"
    limit = timedelta(seconds=SECONDS_TO_REDUCE / 2)
    dist.init_process_group(backend, where, timeout=limit, rank=rank, world_size=size)
    values = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(values)
    if not bool((values == size * (size + 1) / 2).all()):
        raise SystemExit("the sum is wrong")
    dist.destroy_process_group()
