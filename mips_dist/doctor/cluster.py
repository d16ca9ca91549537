"""The Ray cluster that RAY_ADDRESS names: its token, versions, nodes, and links between them."""

import logging
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mips_dist.doctor.between import look_between
from mips_dist.doctor.finding import Finding
from mips_dist.doctor.packages import can_import, installed
from mips_dist.doctor.peer import Peer

_SECONDS_TO_CONNECT = 5.0
_IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # asks for the token, and has the version
_TOKEN_REMEDY = (
    "give this cluster's token: RAY_AUTH_MODE=token and ~/.ray/auth_token (or where "
    "RAY_AUTH_TOKEN_PATH says), the same file on every host"
)


def probe() -> list[Finding]:
    """Look at the token, and at the cluster where one is named."""
    if not can_import("ray"):
        seen = "ray is not installed (pip install 'mips-dist[train]')"
        return [Finding("unchecked", "ray", seen)]
    address = os.environ.get("RAY_ADDRESS", "")
    findings = _token_file(is_used=bool(address))
    if not address:
        seen = "no cluster: RAY_ADDRESS names none, so commands start a Ray of their own"
        return [*findings, Finding("unchecked", "ray", seen)]
    if address == "auto":
        note = (
            Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/ray_current_cluster"
        )
        address = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        if not address:
            remedy = "start one (ray start ...), or give RAY_ADDRESS=HOST:PORT"
            seen = "RAY_ADDRESS=auto, and no Ray runs on this machine"
            return [*findings, Finding("problem", "ray", seen, remedy)]
    found = _head(address)
    findings += found
    if any(finding.state == "problem" for finding in found):
        return findings
    return [*findings, *_nodes(address)]


def _token_file(is_used: bool) -> list[Finding]:
    path = _token_path()
    if os.environ.get("RAY_AUTH_TOKEN") or not path.is_file():
        return []
    mode = path.stat().st_mode & 0o777
    if mode & 0o077 == 0:
        return [Finding("ok", "token", f"{path} has mode {mode:o}")]
    seen = f"{path} has mode {mode:o}: others on this machine may read it and run code as you"
    return [Finding("problem" if is_used else "warning", "token", seen, f"chmod 600 {path}")]


def _head(address: str) -> list[Finding]:
    """Ask the head itself, before Ray's own client, which waits long and does not say why."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        seen = f"RAY_ADDRESS={address} is not HOST:PORT"
        return [Finding("problem", "ray", seen, "give HOST:PORT of the head, such as node1:6379")]
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        remedy = "see that the head runs (ray status there) and that its port is open to this host"
        seen = (
            f"nobody answers at RAY_ADDRESS={address} ({getattr(error, 'strerror', None) or error})"
        )
        return [Finding("problem", "ray", seen, remedy)]
    import grpc
    from ray.core.generated import gcs_service_pb2

    reply_type: Any = gcs_service_pb2.CheckAliveReply  # type: ignore[attr-defined]
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(_IS_ALIVE, response_deserializer=reply_type.FromString)
        findings, reply = [], None
        try:
            reply = ask(b"", timeout=_SECONDS_TO_CONNECT)
            seen = f"{address} asks nobody for a token: whoever reaches it runs code as you"
            remedy = "start Ray with cluster/ray.env sourced, on every host"
            findings.append(Finding("warning", "token", seen, remedy))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                seen = f"what answers at {address} is no Ray ({error.code().name})"
                remedy = "give the port that `ray start --head` printed, 6379 by default"
                return [Finding("problem", "ray", seen, remedy)]
        if reply is None:
            if not (token := _token()):
                seen = f"{address} asks for a token, and there is none here"
                return [Finding("problem", "token", seen, _TOKEN_REMEDY)]
            metadata = (("authorization", f"Bearer {token}"),)
            try:
                reply = ask(b"", timeout=_SECONDS_TO_CONNECT, metadata=metadata)
            except grpc.RpcError:
                return [Finding("problem", "token", f"{address} refuses ours", _TOKEN_REMEDY)]
            findings.append(Finding("ok", "token", f"{address} takes ours and no other"))
    if reply.ray_version != installed("ray"):
        seen = f"{address} runs Ray {reply.ray_version}, here is {installed('ray')}"
        remedy = "run cluster/setup.sh on both"
        return [*findings, Finding("problem", "ray", seen, remedy)]
    return findings


def _token() -> str:
    """Return the token as Ray finds it."""
    if token := os.environ.get("RAY_AUTH_TOKEN", ""):
        return token
    path = _token_path()
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _nodes(address: str) -> list[Finding]:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray raises bare ones
        seen = f"{address}: {str(error).strip().partition(chr(10))[0]}"
        remedy = "see that Python and Ray are the same there and here (cluster/setup.sh)"
        return [Finding("problem", "ray", seen, remedy)]
    try:
        nodes = ray.nodes()
        dead = [node["NodeManagerAddress"] for node in nodes if not node["Alive"]]
        alive = [node for node in nodes if node["Alive"]]
        seen = f"{address}: {len(alive)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPUs"
        findings = [Finding("ok", "ray", seen)]
        if dead:
            seen = f"{len(dead)} nodes were lost: {', '.join(dead[:5])}"
            findings.append(
                Finding("warning", "ray", seen, "start Ray there again, if it was not meant")
            )
        return [*findings, *look_between(_RayHosts(alive))]
    finally:
        ray.shutdown()


class _RayHosts:
    """An actor of no CPU on every node."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.addresses: dict[str, str] = {}
        self._actors: dict[str, Any] = {}
        for node in nodes:
            address, name = node["NodeManagerAddress"], node["NodeManagerHostname"]
            if name in self._actors:
                name = f"{name}/{node['NodeID'][:6]}"
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            self.addresses[name] = address
            self._actors[name] = (
                ray.remote(num_cpus=0)(Peer).options(scheduling_strategy=there).remote()
            )

    def ask(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """Call a method on several hosts at the same time; an Exception in place of no answer."""
        import ray

        asked = {n: getattr(self._actors[n], method).remote(*v) for n, v in arguments.items()}
        deadline = time.monotonic() + seconds
        answers: dict[str, Any] = {}
        for name, reference in asked.items():
            try:
                answers[name] = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                answers[name] = TimeoutError(f"no answer within {seconds:g} s")
            except Exception as error:  # of Ray, or of the peer
                answers[name] = ConnectionError(str(error).strip().splitlines()[-1][:200])
        return answers
