"""Each problem of the hosts of a cluster file is found over real SSH and reported in one line.

Two sshd processes on loopback addresses stand for a head and a worker.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from evals.settings import free_port
from pipelines import cli
from pipelines.checks import cluster_file, preflight
from pipelines.checks import hosts as host_checks
from pipelines.checks.findings import Finding
from pipelines.runtime.versions import version_differences

HEAD, WORKER = "127.0.0.1", "127.0.0.2"
SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
OWN_MOUNTS = ("unshare", "--mount")


@dataclass
class Hosts:
    """A head and a worker that accept our key."""

    folder: Path
    port: int
    file: dict[str, Any]
    servers: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, address: str, around: tuple[str, ...] = ()) -> None:
        """Start an sshd that gives each session a home directory of its own."""
        home, config = self.folder / address, self.folder / f"{address}.conf"
        home.mkdir(exist_ok=True)
        (home / ".bashrc").touch()
        config.write_text(
            f"ListenAddress {address}:{self.port}\nHostKey {self.folder}/key\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv HOME={home}\n"
        )
        server = subprocess.Popen(
            [*around, SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL
        )
        while server.poll() is None and not answers(address, self.port):
            time.sleep(0.05)
        self.servers[address] = server
        assert server.poll() is None, f"sshd does not start at {address}"

    def stop(self, address: str) -> None:
        server = self.servers.pop(address)
        server.kill()
        server.wait()

    def found(self) -> dict[str, Finding]:
        """Write the cluster file and return the findings on it, by name."""
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(self.file))
        found = {finding.check: finding for finding in preflight.check_cluster(str(path))}
        assert not any("\n" in finding.text for finding in found.values())
        return found


def answers(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    if not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")):
        pytest.skip("openssh-server and openssh-client are not installed")
    made = not os.geteuid() and not os.path.isdir("/run/sshd")
    if made:  # sshd requires it when it runs as root
        os.mkdir("/run/sshd")
    for key in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key])
    port = free_port()
    monkeypatch.setattr(host_checks, "_SSH", [*host_checks._SSH, "-p", str(port)])
    start = {f"{kind}_start_ray_commands": ["RAY_AUTH_MODE=token"] for kind in ("head", "worker")}
    (tmp_path / "shared").mkdir()
    file = {
        "cluster_name": "pretend",
        "metadata": {"output": str(tmp_path / "shared" / "runs")},
        "provider": {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]},
        "auth": {"ssh_user": getpass.getuser(), "ssh_private_key": str(tmp_path / "key")},
        **start,
    }
    hosts = Hosts(tmp_path, port, file)
    try:
        hosts.start(HEAD)
        hosts.start(WORKER)
        yield hosts
    finally:
        for address in [*hosts.servers]:
            hosts.stop(address)
        if made:
            os.rmdir("/run/sshd")


def test_hosts_without_a_problem(hosts: Hosts, capsys: pytest.CaptureFixture) -> None:
    found = hosts.found()
    assert {name: f.text for name, f in found.items() if not f.ok} == {}
    assert found["hosts"].text == f"2 hosts accept SSH as {getpass.getuser()}"
    assert [*(hosts.folder / "shared").iterdir()] == [], "a test file stayed"
    assert cli.main(["doctor", "--cluster", str(hosts.folder / "cluster.yaml")]) == 0
    assert "the same on 2 hosts" in capsys.readouterr().out


def test_unreachable_host(hosts: Hosts, capsys: pytest.CaptureFixture) -> None:
    hosts.stop(WORKER)
    found = hosts.found()
    assert not found["hosts"].ok and "storage" not in found
    assert found["hosts"].text.startswith(f"{WORKER} can't be reached (ssh: connect to host")
    assert HEAD not in found["hosts"].text
    assert cli.main(["doctor", "--cluster", str(hosts.folder / "cluster.yaml")]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_wrong_and_missing_key(hosts: Hosts) -> None:
    hosts.file["auth"]["ssh_private_key"] = str(hosts.folder / "other")
    text = hosts.found()["hosts"].text
    assert f"{HEAD} refuses {getpass.getuser()} with the key {hosts.folder}/other" in text
    assert f"{WORKER} refuses" in text and "authorized_keys" in text
    hosts.file["auth"]["ssh_private_key"] = str(hosts.folder / "none")
    assert "none does not exist" in hosts.found()["hosts"].text


def test_other_versions_on_a_host(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, packages = hosts.folder / "bin", hosts.folder / "packages"
    for name in ("ray-2.9.0", "torch-2.1.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
        metadata = "Name: {}\nVersion: {}\n".format(*name.split("-"))
        (packages / f"{name}.dist-info" / "METADATA").write_text(metadata)
    tools.mkdir()
    (tools / "ray").write_text("#!/bin/sh\n")
    (tools / "python").write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (hosts.folder / WORKER / ".bashrc").write_text(f"PATH={tools}:$PATH\necho a greeting\n")
    text = hosts.found()["versions"].text
    assert f"{WORKER} has ray 2.9.0, but the project uses {ray.__version__}" in text
    assert f"{WORKER} has torch 2.1.0" in text and HEAD not in text
    monkeypatch.setattr(host_checks, "PYTHON", "python9.9")
    assert f"{HEAD} has no python9.9: install it there" in hosts.found()["versions"].text


def test_patch_version_of_python_and_build_of_torch_may_differ() -> None:
    import torch

    here = {"python": sys.version.split()[0], "torch": torch.__version__.split("+")[0] + "+cu130"}
    assert [*version_differences(here)] == []
    (message,) = version_differences({**here, "python": "3.13.1"})
    assert message.startswith("python 3.13.1, but the project uses 3.")


def test_directory_that_only_the_head_sees(hosts: Hosts) -> None:
    if subprocess.run([*OWN_MOUNTS, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine does not allow a private mount namespace")
    hosts.stop(WORKER)
    over = f'mount -t tmpfs none {hosts.folder}/shared && exec "$@"'
    hosts.start(WORKER, (*OWN_MOUNTS, "bash", "-c", over, "bash"))
    storage = hosts.found()["storage"]
    assert not storage.ok and f"on {HEAD} is not the same directory on {WORKER}" in storage.text
    assert [*(hosts.folder / "shared").iterdir()] == [], "a test file stayed"


def test_directory_that_the_head_can_not_write_to(hosts: Hosts) -> None:
    hosts.file["metadata"]["output"] = "/proc/otr"
    storage = hosts.found()["storage"]
    assert not storage.ok and storage.text.startswith(f"/proc/otr on {HEAD}: mktemp: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("a: 1", "it has no provider"),
        ("apiVersion: ray.io/v1\nkind: RayJob", "kubectl apply --dry-run=server"),
        ("provider: {type: local, head_ip: a, worker_ips: []}", "'cluster_name' is a required"),
        ("cluster_name: a\nprovider: {type: local, head_ips: a}", "did you mean 'head_ip'?"),
    ],
)
def test_not_a_cluster_file(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(content)
    last = [*preflight.check_cluster(str(file))][-1]
    assert not last.ok and message in last.text and "\n" not in last.text


def test_no_such_file_and_no_such_option(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", "--cluster", "nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "--cluster", "a.yaml", "--clusters", "b"])


def test_credentials_for_a_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws = {"provider": {"type": "aws"}}
    with pytest.raises(ValueError, match="no AWS credentials: aws configure"):
        cluster_file.check_credentials(aws)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    assert "ray up will show" in cluster_file.check_credentials(aws)
