"""Pretend hosts on this machine: namespaces, each with its own address, disk, processes and sshd.

In: names; the sandbox that `make test-cluster` runs the tests in. Out: hosts that can be reached
over SSH, lose their power or their cable, and share one directory, `/mnt/otr`, over the network.
"""

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
    """What `event` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := event()):
        assert time.monotonic() < end, f"{seconds:g} s passed without {what}"
        time.sleep(0.2)
    return found


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command at its end, with what it said on both channels in `stdout`."""
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
    """What a command says, which has to succeed."""
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
        """Switch hosts on that are off; returns when they take connections."""
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
        """Everything of it ends at once; its home stays, and the storage."""
        self._up[name].kill()
        self._up.pop(name).wait()

    def cable(self, name: str, *, plugged: bool) -> None:
        """Of its network."""
        must("ip", "link", "set", name, "up" if plugged else "down")

    def ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there as a person would who logs in."""
        return run(*self.ssh_words(name), f"bash -lic {_quoted(command)}")

    def ssh_words(self, name: str, *options: str) -> list[str]:
        """The beginning of an ssh command."""
        known = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        words = [word for option in [*known, "ConnectTimeout=5"] for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), *words, *options, f"root@{self.addresses[name]}"]

    def processes(self, name: str) -> list[str]:
        """Command lines of all that runs there, but for sshd, sshfs and the shell that asks."""
        told = must(*self.ssh_words(name), "ps -eo pid=,args= --no-headers").splitlines()
        own = ("sshd", "/usr/sbin/sshd", "sshfs", "ssh ", "ps -eo", "bash -c ps -eo")
        commands = [line.split(None, 1)[1] for line in told]
        return [each for each in commands if not each.startswith(own)]


def _quoted(command: str) -> str:
    import shlex

    return shlex.quote(command)
