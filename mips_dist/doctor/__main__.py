"""One probe in a process of its own: prints its findings as JSON; see `finding.Probe`."""

import sys
from collections.abc import Callable

from mips_dist.doctor import builds, cluster, gpu, machine, packages, peer
from mips_dist.doctor.finding import Finding, to_json


def main(what: str, *arguments: str) -> None:
    """Run what a command line names."""
    if what == "peer":
        peer.serve_peer()
    elif what == "all_reduce":
        backend, rank, size, address, port = arguments
        peer.all_reduce(backend, int(rank), int(size), address, int(port))
    else:
        print(" ".join(to_json(_findings(what, *arguments)).splitlines()))


def _findings(what: str, *arguments: str) -> list[Finding]:
    probes: dict[str, Callable[..., list[Finding]]] = {
        "versions": packages.probe,
        "machine": machine.probe,
        "disk": machine.probe_disk,
        "builds": builds.probe,
        "gpu": gpu.probe,
        "ray": cluster.probe,
    }
    return probes[what](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
