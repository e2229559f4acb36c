"""Pretend hosts on this machine: namespaces, each with its own address, disk, processes and sshd.

They are reached over SSH, can lose power or network, and share the directory `/mnt/otr` over the
network. The tests that use them run in the sandbox of `make test-cluster`.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("host.sh")
NETWORK = "10.77.0"
STORAGE = "nas"  # the host that has the shared directory


def wait_for(event: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """Wait until `event` returns a true value, and return it."""
    end = time.monotonic() + seconds
    while not (found := event()):
        assert time.monotonic() < end, f"{seconds:g} s passed without {what}"
        time.sleep(0.2)
    return found


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `stdout` of the result holds stderr too."""
    return subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        **options,
    )


def must(*words: str) -> str:
    """Run a command that must succeed; return its output."""
    done = run(*words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}"
    return done.stdout


class Hosts:
    """A network of hosts; the caller is on it too, at `NETWORK`.1."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        self.addresses = {name: f"{NETWORK}.{10 + i}" for i, name in enumerate([STORAGE, *names])}
        self._up: dict[str, subprocess.Popen[bytes]] = {}
        self.storage = directory / "storage"
        """The shared directory as the storage host has it."""
        self.key = directory / "key"
        for folder in ("homes", "disks", "storage", "logs"):
            (directory / folder).mkdir(parents=True)
        for name in ("key", "hostkey"):
            must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
        lines = [f"{address} {name}" for name, address in self.addresses.items()]
        (directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        must("ip", "link", "add", "cluster", "type", "bridge")
        must("ip", "address", "add", f"{NETWORK}.1/24", "dev", "cluster")
        must("ip", "link", "set", "cluster", "up")
        for name, address in self.addresses.items():
            self._plug(name, address)

    def _plug(self, name: str, address: str) -> None:
        must("ip", "netns", "add", name)
        end = ("peer", "name", "eth0", "netns", name)
        must("ip", "link", "add", name, "type", "veth", *end)
        must("ip", "link", "set", name, "master", "cluster", "up")
        must("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            must("ip", "-n", name, "link", "set", device, "up")

    def boot(self, *names: str) -> None:
        """Boot hosts that are off; return when they accept connections."""
        for name in set(names) - set(self._up):
            storage = "" if name == STORAGE else f"root@{self.addresses[STORAGE]}:/srv"
            own = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
            here = {str(Path(sys.prefix)), sys.base_prefix} - {"/usr"}
            words = ["bash", str(SCRIPT), name, str(self.directory), storage, *sorted(here)]
            with (self.directory / "logs" / name).open("a") as log:
                self._up[name] = subprocess.Popen(
                    ["ip", "netns", "exec", name, "unshare", *own, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        for name in names:
            wait_for(lambda name=name: self.ssh(name, "true").returncode == 0, f"{name}", 30)

    def power_off(self, name: str) -> None:
        """Kill all processes of a host at once; its home directory and the storage remain."""
        self._up[name].kill()
        self._up.pop(name).wait()

    def cable(self, name: str, *, plugged: bool) -> None:
        """Plug or unplug the network of a host."""
        must("ip", "link", "set", name, "up" if plugged else "down")

    def ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host in a login shell."""
        return run(*self.ssh_words(name), f"bash -lic {shlex.quote(command)}")

    def ssh_words(self, name: str, *options: str) -> list[str]:
        """Return the words that begin an ssh command to a host."""
        known = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        words = [word for option in [*known, "ConnectTimeout=5"] for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), *words, *options, f"root@{self.addresses[name]}"]

    def processes(self, name: str) -> list[str]:
        """Return the command lines of a host's processes, except sshd, sshfs and this query."""
        listed = must(*self.ssh_words(name), "ps -eo pid=,args= --no-headers").splitlines()
        own = ("sshd", "/usr/sbin/sshd", "sshfs", "ssh ", "ps -eo", "bash -c ps -eo")
        commands = [line.split(None, 1)[1] for line in listed]
        return [each for each in commands if not each.startswith(own)]
