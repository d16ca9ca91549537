"""``mips doctor``: what is there, what will fail, and what to do about it."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mips_dist.data.files import write_atomically
from mips_dist.doctor.finding import Finding, Probe, to_json
from mips_dist.doctor.ssh import host_names, look_at

_FOLDERS = ("runs",)
_SECONDS = 30.0
_SECONDS_OF_TORCH = 120.0  # its import reads gigabytes
_SECONDS_OF_A_CLUSTER = 300.0  # all that is asked of a cluster has limits of its own below


def doctor(
    folders: Sequence[str], hosts: str, hostfile: Path | None, json_file: Path | None
) -> int:
    """Print a line for every finding as it comes; return 1 where there is a problem, else 0."""
    names = host_names(hosts, hostfile)
    places = [*(folders or _FOLDERS), tempfile.gettempdir()]
    # All at the same time: waiting is most of it.
    probes = [Probe("versions", seconds=_SECONDS), Probe("machine", seconds=_SECONDS)]
    probes += [Probe("disk", place, seconds=_SECONDS) for place in places]
    probes += [Probe("builds", *(folders or _FOLDERS), seconds=_SECONDS)]
    probes += [Probe("gpu", seconds=_SECONDS_OF_TORCH)]
    probes += [Probe("ray", seconds=_SECONDS_OF_A_CLUSTER)]
    findings: list[Finding] = []
    try:
        for probe in probes:
            _show(probe.findings(), findings)
    finally:
        for probe in probes:
            with suppress(OSError):
                probe.end()
    if names:
        _show(look_at(names), findings)
    else:
        seen = "none were named (--hosts, --hostfile): ssh and links between them"
        _show([Finding("unchecked", "hosts", seen)], findings)
    problems = sum(finding.state == "problem" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    print(f"{problems} problems, {warnings} warnings")
    if json_file is not None:
        write_atomically(json_file, to_json(findings) + "\n")
    return 1 if problems else 0


def _show(found: list[Finding], findings: list[Finding]) -> None:
    findings += found
    for finding in found:
        print(finding.line(), flush=True)
