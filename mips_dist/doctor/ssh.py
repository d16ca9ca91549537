"""Hosts over ssh, as the launcher of DeepSpeed reaches them: same user, folder and environment."""

import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mips_dist.doctor.between import look_between
from mips_dist.doctor.finding import Finding
from mips_dist.errors import MipsError, UsageError

_SECONDS_TO_CONNECT = 5
# What the launcher hands on to other hosts.
_HANDED_ON = re.compile(r"(PYTHONPATH|PATH|OMP_NUM_THREADS|(NCCL|GLOO|UCX)_\w+)")
_NAME = re.compile(r"(\w[\w.-]*@)?\w[\w.:-]*")  # never an option of ssh


def host_names(hosts: str, hostfile: Path | None) -> list[str]:
    """Return the hosts of ``--hosts`` or of a hostfile of DeepSpeed.

    Raises
    ------
    UsageError, MipsError
        Both were given, the file cannot be read, or a name is none.
    """
    if hosts and hostfile is not None:
        raise UsageError("give --hosts or --hostfile, not both")
    names = [name.strip() for name in hosts.split(",") if name.strip()]
    if hostfile is not None:
        try:
            lines = hostfile.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MipsError(f"{hostfile} cannot be read ({error}); give a hostfile") from error
        names = [w[0] for line in lines if (w := line.partition("#")[0].split())]
        if not names:
            raise MipsError(f"{hostfile} names no host; write a line `NAME slots=N` for each")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is no name of a host")
    return list(dict.fromkeys(names))


def look_at(names: Sequence[str]) -> list[Finding]:
    """Look at hosts over ssh."""
    hosts = _SshHosts(names)
    try:
        return [*hosts.findings, *look_between(hosts)]
    finally:
        hosts.end()


class _SshHosts:
    """A peer behind ssh on every host that lets us in."""

    def __init__(self, names: Sequence[str]) -> None:
        self.findings: list[Finding] = []
        handed_on = [f"{k}={v}" for k, v in os.environ.items() if _HANDED_ON.fullmatch(k)]
        command = ["env", "-C", os.getcwd(), *handed_on]
        command += [sys.executable, "-P", "-m", "mips_dist.doctor", "peer"]
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS_TO_CONNECT}"]
        ssh += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        try:
            self._lines = {
                name: subprocess.Popen(
                    [*ssh, "--", name, shlex.join(command)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                for name in names
            }
        except FileNotFoundError as error:
            raise MipsError("no ssh here; apt-get install openssh-client") from error
        self.addresses = {name: name.rpartition("@")[2] for name in names}
        answers = self.ask("clock", {name: () for name in names}, 30.0)
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                del self.addresses[name]
                remedy = (
                    "see that it is up, that ssh asks no question (ssh-copy-id, known_hosts), and "
                    "that this folder and environment are there too"
                )
                self.findings.append(Finding("problem", "host", f"{name}: {answer}", remedy))

    def ask(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """Call a method on several hosts at the same time; an Exception in place of no answer."""
        answers: dict[str, Any] = {}
        waiting = {}
        for name, values in arguments.items():
            line = self._lines[name]
            assert line.stdin is not None
            assert line.stdout is not None
            try:
                line.stdin.write(json.dumps([method, values]).encode() + b"\n")
                line.stdin.flush()
            except OSError:
                pass  # it has ended; reading says so
            waiting[line.stdout] = name
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            for stream in select.select(list(waiting), [], [], left)[0]:
                name = waiting.pop(stream)
                answers[name] = self._answer(name, stream.readline())
        silent = {
            name: TimeoutError(f"no answer within {seconds:g} s") for name in waiting.values()
        }
        return {name: (answers | silent)[name] for name in arguments}

    def _answer(self, name: str, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError:
            process = self._lines[name]
            assert process.stderr is not None
            process.kill()  # so that its last words end
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            return ConnectionError((said or ["the connection ended"])[-1][:200])

    def end(self) -> None:
        """Close all connections; peers end with them."""
        for process in self._lines.values():
            process.kill()
        for process in self._lines.values():
            process.communicate()
