"""Hosts of our own on one Linux machine, for drills: namespaces, each with its address and sshd.

    sudo python scripts/hosts.py check pdsh        # which Debian packages are missing, that one too
    sudo python scripts/hosts.py up 3              # h1, h2, h3 at 10.77.0.11, .12, .13
    sudo python scripts/hosts.py exec h1 COMMAND   # on that host, in the same working directory
    sudo python scripts/hosts.py cut h2            # pull its cable: no packet, no goodbye
    sudo python scripts/hosts.py heal h2           # plug it in again, at full speed
    sudo python scripts/hosts.py slow h2 8         # 8 Mbit/s and a queue of 400 ms towards it
    sudo python scripts/hosts.py kill h2           # power off: every process of it ends at once
    sudo python scripts/hosts.py boot h2           # power on, with a new sshd
    sudo python scripts/hosts.py down              # all gone

`--subnet N` (default 77) keeps several sets apart: 10.N.0.x, bridge mipsN, state in
/var/tmp/mips-hosts-N. From Python, with scripts/ on the path: ``Hosts(subnet=77)``, whose methods
have the same names.

A host has its own network, hostname, processes, /dev/shm, /tmp/ray, /run, /etc/hosts and ~/.ssh of
root. On every host, `ssh h2` works without a question. Shared with the machine, as on a cluster
with a shared file system: all other files, the clock, memory, cores. The kernel ends a killed
host's connections properly; for a silent loss, cut it first. The machine reaches the hosts at their
addresses. Mounts made on a host are its own and end with it.
"""

import argparse
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Command -> Debian package that has it.
NEEDED = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
LONGEST_BOOT = 30.0  # seconds
SHM_SIZE = "2g"

UNSHARE = ["unshare", "--net", "--uts", "--pid", "--ipc", "--mount"]
UNSHARE += ["--fork", "--kill-child=KILL", "--mount-proc"]
# Process 1 of a host: waits, and takes in orphans.
INIT = "trap : TERM INT; while :; do sleep 3600 & wait; done"
# What a host must not share, made before its sshd starts.
SETUP = """
set -e
hostname "$1"
mount -t tmpfs -o size="$2" tmpfs /dev/shm
mkdir -p /tmp/ray "$4" && mount -t tmpfs tmpfs /tmp/ray
mount --bind "$3/ssh" "$4"
mount --bind "$3/hosts" /etc/hosts
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd
exec "$5" -f "$3/$1/sshd_config" -E "$3/$1/sshd.log"
"""


class Hosts:
    """A set of hosts on one bridge.

    Parameters
    ----------
    subnet
        10.SUBNET.0.0/24; sets with different ones do not know of each other.
    """

    def __init__(self, subnet: int = 77) -> None:
        if missing := missing_tools():
            raise SystemExit(f"error: {missing}")
        self.subnet = subnet
        self.bridge = f"mips{subnet}"
        self.folder = Path(f"/var/tmp/mips-hosts-{subnet}")
        self.home = pwd.getpwuid(0).pw_dir

    # ---- what a drill does

    def up(self, number: int) -> None:
        """Start hosts h1 to h`number`."""
        self.down()
        (self.folder / "ssh").mkdir(parents=True)
        (self.folder / "ssh").chmod(0o700)
        names = [f"h{k}" for k in range(1, number + 1)]
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        self._make_keys(names)
        _do("ip", "link", "add", self.bridge, "type", "bridge")
        _do("ip", "address", "add", f"10.{self.subnet}.0.1/24", "dev", self.bridge)
        _do("ip", "link", "set", self.bridge, "up")
        for name in names:
            self.boot(name)

    def down(self) -> None:
        """End all hosts and remove what they were made of."""
        for name in self.names():
            self.kill(name)
        _delete_link(self.bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    def boot(self, name: str) -> None:
        """Switch a host on."""
        state = self.folder / name
        with (state / "init.log").open("ab") as log:
            holder = subprocess.Popen(
                [*UNSHARE, "bash", "-c", INIT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        _wait(lambda: children.read_text().strip(), f"{name} does not start")
        init = int(children.read_text())
        (state / "pids").write_text(f"{init} {holder.pid}")
        cable = self._cable(name)
        # As of real hosts: others remember it over a restart.
        mac = f"02:6d:70:00:{self.subnet:02x}:{int(name[1:]):02x}"
        _do(*f"ip link add {cable} type veth peer name eth0 address {mac} netns {init}".split())
        _do("ip", "link", "set", cable, "master", self.bridge, "up")
        for line in (
            "link set lo up",
            f"address add {self.address(name)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via 10.{self.subnet}.0.1",
        ):
            _do("nsenter", "-t", str(init), "-n", "ip", *line.split())
        ssh = f"{self.home}/.ssh"
        sshd = shutil.which("sshd", path=_PATH) or ""
        self.run(name, ["bash", "-c", SETUP, "-", name, SHM_SIZE, str(self.folder), ssh, sshd])
        _wait(lambda: self._answers(name), f"the sshd of {name} does not answer")

    def kill(self, name: str) -> None:
        """Switch a host off; every process of it ends at once."""
        pids = self.folder / name / "pids"
        if not pids.exists():
            return
        init, holder = pids.read_text().split()
        for pid in (init, holder):
            if _is_alive(pid):
                os.kill(int(pid), 9)
        _wait(lambda: not _is_alive(init), f"{name} does not end")
        # Connections that are still being closed would keep its network for a minute.
        _delete_link(self._cable(name))
        pids.unlink(missing_ok=True)

    def cut(self, name: str) -> None:
        """Pull the cable of a host."""
        _do("ip", "link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """Plug the cable in again, and let it be as fast as it was."""
        cable = self._cable(name)
        subprocess.run(["tc", "qdisc", "del", "dev", cable, "root"], stderr=subprocess.DEVNULL)
        _do("ip", "link", "set", cable, "up")

    def slow(self, name: str, mbit: float) -> None:
        """Let so many Mbit/s through to a host."""
        limits = f"rate {mbit}mbit burst 32kbit latency 400ms"
        _do(*f"tc qdisc replace dev {self._cable(name)} root tbf {limits}".split())

    def held(self, name: str) -> int:
        """Count the packets to a host that `slow` has let wait."""
        words = ["tc", "-s", "qdisc", "show", "dev", self._cable(name), "root"]
        shown = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout
        return int(re.findall(r"overlimits (\d+)", shown)[0])

    def command(self, name: str, words: list[str]) -> list[str]:
        """Return the command that runs `words` on a host, in this working directory."""
        init = (self.folder / name / "pids").read_text().split()[0]
        enter = ["nsenter", "-t", init, "-n", "-u", "-p", "-i", "-m", "--"]
        return [*enter, "env", "-C", os.getcwd(), *words]

    def run(
        self, name: str, words: list[str], **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run on a host; like `subprocess.run` with check and text on, but for given options."""
        options = {"check": True, "text": True} | options
        return subprocess.run(self.command(name, words), **options)

    def start(self, name: str, words: list[str], **options: Any) -> "subprocess.Popen[str]":
        """Begin a process on a host; like `subprocess.Popen` in a session of its own."""
        options = {"text": True, "start_new_session": True} | options
        return subprocess.Popen(self.command(name, words), **options)

    def names(self) -> list[str]:
        """Return the hosts of this set, on or off."""
        return sorted(path.parent.name for path in self.folder.glob("h*/sshd_config"))

    def is_on(self, name: str) -> bool:
        """Whether a host is switched on."""
        return (self.folder / name / "pids").exists()

    def address(self, name: str) -> str:
        """Return the address of a host."""
        return f"10.{self.subnet}.0.{10 + int(name[1:])}"

    # ---- how

    def _cable(self, name: str) -> str:
        return f"mips{self.subnet}{name}"

    def _make_keys(self, names: list[str]) -> None:
        ssh = self.folder / "ssh"
        _make_key(ssh / "id_ed25519")
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        known = []
        for name in names:
            state = self.folder / name
            state.mkdir()
            _make_key(state / "host_key")
            public = " ".join((state / "host_key.pub").read_text().split()[:2])
            known.append(f"{name},{self.address(name)} {public}\n")
            (state / "sshd_config").write_text(
                f"ListenAddress {self.address(name)}:22\n"
                f"HostKey {state}/host_key\n"
                f"AuthorizedKeysFile {self.home}/.ssh/authorized_keys\n"
                "PidFile /run/sshd.pid\n"
                "PermitRootLogin prohibit-password\n"
                "PasswordAuthentication no\n"
                "UsePAM no\n"
                "StrictModes no\n"
                "MaxStartups 100\n"
                "Subsystem sftp internal-sftp\n"
            )
        (ssh / "known_hosts").write_text("".join(known))

    def _answers(self, name: str) -> bool:
        try:
            with socket.create_connection((self.address(name), 22), timeout=1):
                return True
        except OSError:
            return False


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing_tools(also: dict[str, str] | None = None) -> str:
    """Say in one line why no hosts can be made here; empty where they can.

    Parameters
    ----------
    also
        Command -> Debian package, of what is needed beside them.
    """
    if sys.platform != "linux":
        return "hosts are made of Linux namespaces; run this on Linux"
    needed = NEEDED | (also or {})
    if missing := {
        package for tool, package in needed.items() if not shutil.which(tool, path=_PATH)
    }:
        return "missing; run: apt-get install -y " + " ".join(sorted(missing))
    if os.geteuid() != 0:
        return "hosts need root; run this with sudo"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True)
    if tried.returncode != 0:
        return f"no namespaces here ({tried.stderr.decode().strip()}); run this outside a container"
    return ""


def _make_key(path: Path) -> None:
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mips-hosts", "-f", str(path))


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PATH": _PATH})
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(words)}: {done.stderr.strip()}")


def _delete_link(name: str) -> None:
    """Delete a network link, unless it is gone already."""
    subprocess.run(["ip", "link", "delete", name], stderr=subprocess.DEVNULL)


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait(is_done: Any, complaint: str) -> None:
    deadline = time.monotonic() + LONGEST_BOOT
    while not is_done():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {complaint}")
        time.sleep(0.02)


def main() -> int:
    """Do what the command line says."""
    described = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**described)
    parser.add_argument("--subnet", type=int, default=77)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("check").add_argument("packages", nargs="*", help="named as their commands")
    actions.add_parser("up").add_argument("number", type=int)
    actions.add_parser("down")
    for action in ("cut", "heal", "slow", "kill", "boot", "exec"):
        one = actions.add_parser(action)
        one.add_argument("name")
        if action == "slow":
            one.add_argument("mbit", type=float)
        if action == "exec":
            one.add_argument("words", nargs=argparse.REMAINDER)
    given = vars(parser.parse_args())
    if given["action"] == "check":
        if missing := missing_tools({name: name for name in given["packages"]}):
            raise SystemExit(f"error: {missing}")
        return 0
    hosts, action = Hosts(given.pop("subnet")), given.pop("action")
    if "name" in given and given["name"] not in hosts.names():
        raise SystemExit(f"error: no host {given['name']}; there are: {' '.join(hosts.names())}")
    if action == "exec":
        return hosts.run(given["name"], given["words"], check=False).returncode
    getattr(hosts, action)(*given.values())
    return 0


if __name__ == "__main__":
    sys.exit(main())
