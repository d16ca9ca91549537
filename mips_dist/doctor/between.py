"""Findings about a set of hosts, however they are reached: versions, clocks, connections."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from mips_dist.doctor.finding import Finding, from_json
from mips_dist.doctor.peer import SECONDS_TO_CONNECT, SECONDS_TO_REDUCE

_SECONDS_APART = 1.0
_SECONDS_FAR_APART = 60.0
_SHOWN = 10  # pairs that do not connect


class Hosts(Protocol):
    """Peers on hosts; `addresses` has those that answer, name -> address."""

    addresses: dict[str, str]

    def ask(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """Call a method on several hosts at the same time; an Exception in place of no answer."""


def look_between(hosts: Hosts) -> list[Finding]:
    """Compare hosts with each other and let each connect to all others."""
    findings: list[Finding] = []
    facts = _answers(hosts, "facts", hosts.addresses, 60.0, findings)
    for name, found in facts.items():
        seen = f"{found['cores']} cores, {found['memory'] / 1e9:.1f} GB, {found['gpus']} GPUs"
        findings.append(Finding("ok", "host", f"{name}: {seen}"))
        bad = [f for f in from_json(found["findings"]) if f.state not in ("ok", "unchecked")]
        findings += [finding.at(name) for finding in bad]
    if len(facts) < 2:
        return [*findings, Finding("unchecked", "links", "fewer than two hosts answer")]
    findings += [*_versions(facts), *_clocks(hosts, list(facts))]
    links = _links(hosts, list(facts))
    findings += links
    if any(finding.state == "problem" for finding in links):
        return [*findings, Finding("unchecked", "gloo", "not every pair of hosts connects")]
    for backend in ("gloo", "nccl"):
        if backend == "gloo" or all(found["gpus"] for found in facts.values()):
            findings.append(_all_reduce(hosts, list(facts), backend))
    return findings


def _answers(
    hosts: Hosts, method: str, names: Iterable[str], seconds: float, findings: list[Finding]
) -> dict[str, Any]:
    """Ask hosts and return those that answered; the others are findings."""
    answers = hosts.ask(method, {name: () for name in names}, seconds)
    for name, error in answers.items():
        if isinstance(error, Exception):
            remedy = "see that it is up, and has this version of mips_dist at the same place"
            findings.append(Finding("problem", "host", f"{name}: {error}", remedy))
    return {name: x for name, x in answers.items() if not isinstance(x, Exception)}


def _versions(facts: Mapping[str, Any]) -> list[Finding]:
    findings = []
    first = next(iter(facts))
    for package, expected in facts[first]["versions"].items():
        for name, found in facts.items():
            if (other := found["versions"][package]) != expected:
                seen = f"{package} {other} on {name}, {expected} on {first}"
                findings.append(
                    Finding("problem", "versions", seen, f"run cluster/setup.sh on {name}")
                )
    return findings or [Finding("ok", "versions", f"the same on all {len(facts)} hosts")]


def _clocks(hosts: Hosts, names: list[str]) -> list[Finding]:
    """Compare clocks with this machine's; the way there and back is the uncertainty."""
    apart: dict[str, tuple[float, float]] = {}
    for name in names:
        start = time.time()
        answer = hosts.ask("clock", {name: ()}, 10.0)[name]
        end = time.time()
        if not isinstance(answer, Exception):
            apart[name] = answer - (start + end) / 2, (end - start) / 2
    findings = []
    for name, (seconds, uncertain) in apart.items():
        sure = abs(seconds) - uncertain
        if sure > _SECONDS_APART:
            state = "problem" if sure > _SECONDS_FAR_APART else "warning"
            remedy = "let chrony or ntpd set the clock; object stores refuse a wrong time"
            seen = f"that of {name} differs by {seconds:+.1f} s"
            findings.append(Finding(state, "clock", seen, remedy))  # type: ignore[arg-type]
    widest = max((abs(s) + u for s, u in apart.values()), default=0.0)
    return findings or [Finding("ok", "clock", f"all within {widest:.3f} s of this machine's")]


def _links(hosts: Hosts, names: list[str]) -> list[Finding]:
    findings: list[Finding] = []
    ports = _answers(hosts, "listen", names, 10.0, findings)
    asked = {n: ([(hosts.addresses[o], ports[o]) for o in ports if o != n],) for n in ports}
    answers = hosts.ask("reach", asked, 10.0 + 4 * SECONDS_TO_CONNECT)
    slowest, count, broken = 0.0, 0, []
    for name, answer in answers.items():
        for other, seen in zip(
            (o for o in ports if o != name), _each(answer, len(ports)), strict=False
        ):
            count += 1
            if isinstance(seen, str):
                broken.append(f"{name} does not reach {other} ({hosts.addresses[other]}): {seen}")
            else:
                slowest = max(slowest, seen)
    remedy = "open all ports between the hosts (firewall, security group, route)"
    findings += [Finding("problem", "links", text, remedy) for text in broken[:_SHOWN]]
    if len(broken) > _SHOWN:
        findings.append(Finding("problem", "links", f"and {len(broken) - _SHOWN} more", remedy))
    if not findings:
        seen = f"all {count} ways between {len(ports)} hosts connect"
        findings.append(Finding("ok", "links", f"{seen}, the slowest in {1e3 * slowest:.1f} ms"))
    return findings


def _each(answer: Any, count: int) -> list[float | str]:
    return [str(answer)] * (count - 1) if isinstance(answer, Exception) else answer


def _all_reduce(hosts: Hosts, names: list[str], backend: str) -> Finding:
    address = hosts.addresses[names[0]]
    port = hosts.ask("free_port", {names[0]: ()}, 10.0)[names[0]]
    size = len(names)
    ranks = {name: (backend, rank, size, address, port) for rank, name in enumerate(names)}
    answers = hosts.ask("all_reduce", ranks, SECONDS_TO_REDUCE + 10.0)
    if failed := {name: str(said) for name, said in answers.items() if said}:
        name, reason = next(iter(failed.items()))
        remedy = (
            "name the interface that hosts reach each other by "
            f"({backend.upper()}_SOCKET_IFNAME=eth0), and see that a host's own name is not "
            "127.0.1.1 in its /etc/hosts"
        )
        seen = f"{len(failed)} of {size} ranks of an all-reduce failed; {name}: {reason}"
        return Finding("problem", backend, seen, remedy)
    return Finding("ok", backend, f"an all-reduce over {size} hosts, one rank each")
