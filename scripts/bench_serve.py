#!/usr/bin/env python
"""Load `mips serve` with clients, and print errors, latency, requests and batch sizes.

Starts the server itself (released models egc and nc), so that the figures say what they are of:

    python scripts/bench_serve.py --seconds 60 --clients 32 --replicas 1
    python scripts/bench_serve.py --seconds 30 --clients 32 --replicas 2 --kill

A request holds one polymer, never the same one twice, so that nothing is answered from memory.
With --kill a replica is ended by SIGKILL after a third of the time, and again after two thirds. A
client tries again what is answered by 503; whatever fails all the same is an error, and so is an
answer with other bits than the library's for a sample of the polymers.
"""

import argparse
import collections
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

import mips_dist as mips

PROPERTIES = ("egc", "nc")
CHECKED = 50  # answers that are compared with the library
MAX_TRIES = 10


@dataclass
class Tally:
    """What one or all clients saw."""

    seconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    retries: int = 0
    answers: dict[str, dict[str, float]] = field(default_factory=dict)


def polymers(seed: int):
    """Yield distinct polymers: chains of small pieces in random order."""
    pieces = ("C", "O", "C(C)", "c1ccc(cc1)", "C(=O)", "N", "C(F)(F)", "S", "C(c1ccccc1)")
    rng, seen = random.Random(seed), set()
    while True:
        text = "*" + "".join(rng.choices(pieces, k=rng.randint(4, 9))) + "*"
        if text not in seen:
            seen.add(text)
            yield text


def client(address: str, texts, end: float, tally: Tally) -> None:
    """Send one request after another until the end."""
    connection = http.client.HTTPConnection(address, timeout=150)
    headers = {"Content-Type": "application/json"}
    while time.monotonic() < end:
        text = next(texts)
        body = json.dumps({"psmiles": [text]})
        start = time.monotonic()
        for attempt in range(1, MAX_TRIES + 1):
            try:
                connection.request("POST", "/predict", body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                tally.errors[type(error).__name__] += 1
                connection.close()
                break
            if answer.status == 503 and attempt < MAX_TRIES:
                tally.retries += 1
                time.sleep(float(answer.getheader("Retry-After") or 1))
                continue
            if answer.status != 200:
                tally.errors[f"{answer.status} {content[:80]!r}"] += 1
                break
            tally.seconds.append(time.monotonic() - start)
            tally.batches.append(int(answer.getheader("X-Batch-Size")))
            row = json.loads(content)["rows"][0]
            tally.answers[text] = {name: v["value"] for name, v in row["values"].items()}
            break


def replicas(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that hold models."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "ServeReplica:mips:models" in " ".join(p.cmdline())]


def main() -> int:
    """Run; return 1 where a request was lost or an answer is not the library's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="end a replica, twice")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mips_dist.cli", "serve", "--port", str(port)]
    command += ["--replicas", str(options.replicas)]
    command += [part for name in PROPERTIES for part in ("-p", name)]
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started = time.monotonic()
        try:
            if not process.stdout.readline().startswith("serving"):
                return 1
            print(f"ready after {time.monotonic() - started:.0f} s")
            return load(options, process, f"127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGINT)
            print("exit code of the server:", process.wait(90))


def load(options: argparse.Namespace, process: subprocess.Popen, address: str) -> int:
    """Run the clients, and print what they saw."""
    tallies = [Tally() for _ in range(options.clients)]
    end = time.monotonic() + options.seconds
    threads = [
        threading.Thread(target=client, args=(address, polymers(seed), end, tally))
        for seed, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    for _ in range(2 if options.kill else 0):
        time.sleep(options.seconds / 3)
        victim = random.choice(replicas(process))
        print(f"killing replica {victim.pid}")
        victim.kill()
    for thread in threads:
        thread.join()
    seconds = np.array(list(itertools.chain.from_iterable(t.seconds for t in tallies)))
    batches = np.array(list(itertools.chain.from_iterable(t.batches for t in tallies)))
    errors = sum((t.errors for t in tallies), collections.Counter())
    answers = dict(itertools.chain.from_iterable(t.answers.items() for t in tallies))
    p50, p95, p99 = np.quantile(seconds, [0.5, 0.95, 0.99])
    print(f"clients {options.clients}, replicas {options.replicas}, {options.seconds:.0f} s")
    print(f"requests {len(seconds)}, {len(seconds) / options.seconds:.1f} a second")
    print(f"errors {errors.total()} {dict(errors)}, tried again {sum(t.retries for t in tallies)}")
    print(f"latency p50 {p50:.3f} s, p95 {p95:.3f} s, p99 {p99:.3f} s, max {seconds.max():.3f} s")
    low, middle, high = np.quantile(batches, [0.05, 0.5, 0.95])
    print(f"batch sizes (polymers) p5 {low:.0f}, median {middle:.0f}, p95 {high:.0f}")
    sample = random.Random(0).sample(sorted(answers), min(CHECKED, len(answers)))
    known = mips.load(*PROPERTIES).predict(sample)
    wrong = sum(
        answers[text] != {name: v.value for name, v in row.values.items()}
        for text, row in zip(sample, known, strict=True)
    )
    print(f"compared with the library {len(sample)}, different {wrong}")
    return int(errors.total() + wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
