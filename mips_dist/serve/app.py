"""`mips serve`: start Ray and the application on this machine, wait, and stop both."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console

from mips_dist.own_ray import private_environment

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.update(private_environment())

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from mips_dist.errors import MipsError, UsageError
from mips_dist.serve.deployments import application
from mips_dist.serve.engine import Engine

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
_NUM_STARTS = 3  # Ray gives its own processes 30 s, which is short on a crowded machine
_SECONDS_BETWEEN_LOOKS = 5.0
_LOOKS = 6  # in a row without an answer: Ray is gone


def run_server(directories: Sequence[Path], host: str, port: int, num_replicas: int) -> int:
    """Serve models until SIGINT or SIGTERM.

    Parameters
    ----------
    directories
        Of property models.
    host
        Address to listen on.
    num_replicas
        Processes that hold all models, and compute one polymer at a time each.

    Returns
    -------
    130: the only end of a server that runs well is to be interrupted.

    Raises
    ------
    UsageError
        The address cannot be listened on, or two models predict one property.
    MipsError
        A damaged model; Ray does not start, or ends.
    """
    console = Console(stderr=True)
    is_local = f"[{host}]" in _LOCAL if ":" in host else host in _LOCAL
    if not is_local:
        print(
            f"warning: {host} can be reached from other machines, and this server asks nobody who "
            "they are; put a proxy with authentication before it",
            file=sys.stderr,
        )
    _check_free(host, port)
    places = [str(directory.resolve()) for directory in directories]
    interrupt = _Interrupt()
    interrupt.listen()
    try:
        with console.status("loading the models once, to check them"):
            engine = Engine(places)
            about = engine.about
            engine.close()
        stdout = sys.stdout
        # Ray prints there what it thinks of processes that end, those that it ends itself too.
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            _ray(num_replicas, host, port, console, interrupt),
        ):
            with console.status(f"loading the models into {num_replicas} replicas"):
                logs = LoggingConfig(enable_access_log=False, log_level="WARNING")
                hosts = _LOCAL if is_local else ()
                try:
                    serve.run(
                        application(places, about, hosts, num_replicas),
                        name="mips",
                        logging_config=logs,
                    )
                except RuntimeError as error:
                    raise MipsError(
                        "the replicas did not start; is there memory for "
                        f"{num_replicas}? Give fewer (--replicas)"
                    ) from error
            names = ", ".join(card["property"] for card in about["models"])
            shown = f"[{host}]" if ":" in host else host
            line = f"serving {names} at http://{shown}:{port}/ (Ctrl-C stops)"
            print(line, file=stdout, flush=True)
            _wait(interrupt.is_sent)
    except KeyboardInterrupt:
        pass
    return 130


def _check_free(host: str, port: int) -> None:
    """Say in a line what Ray would say in fifty."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); give another --host "
            "or --port"
        ) from error


class _Interrupt:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt, and ignores what follows."""

    def __init__(self) -> None:
        self.is_sent = threading.Event()

    def listen(self) -> None:
        """Take both signals; again after a step in which Ray takes SIGTERM, to abort on it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._answer)

    def _answer(self, *_: object) -> None:
        if not self.is_sent.is_set():
            self.is_sent.set()
            raise KeyboardInterrupt


@contextmanager
def _ray(
    num_replicas: int, host: str, port: int, console: Console, interrupt: _Interrupt
) -> Iterator[None]:
    """Run a Ray of our own, with Serve's HTTP proxy; stop both and remove what they wrote."""
    # Short: the path of a Unix socket ends at 107 characters.
    temporary = tempfile.mkdtemp(prefix="mips-serve-")
    # Processes that are started now inherit what is blocked: Ctrl-C in a terminal goes to all of
    # the group, and only this one is to answer.
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        with console.status("starting Ray"):
            _start_ray(num_replicas, temporary)
            interrupt.listen()
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "keep_alive_timeout_s": 60},
                logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
            )
        interrupt.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        yield
    finally:
        try:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _start_ray(num_replicas: int, temporary: str) -> None:
    for attempt in range(1, _NUM_STARTS + 1):
        try:
            ray.init(
                address="local",  # never a cluster of someone else on this machine
                num_cpus=num_replicas,  # shares, not cores
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=temporary,
            )
            return
        except Exception as error:  # Ray has no class for a start that takes too long
            ray.shutdown()
            if attempt == _NUM_STARTS:
                raise MipsError(
                    f"Ray did not start ({str(error).splitlines()[0]}); is the machine too busy?"
                ) from error


def _wait(stop: threading.Event) -> None:
    """Wait for a signal, or for the end of Ray."""
    missed = 0
    while not stop.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            is_there = bool(serve.status().proxies)
        except Exception:  # whatever a client says whose server is gone
            is_there = False
        missed = 0 if is_there else missed + 1
        if missed == _LOOKS:
            raise MipsError("the processes of Ray have ended; is the machine short of memory?")
