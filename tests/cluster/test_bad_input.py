"""What a person is told who gives a wrong host, key or directory: one clear line."""

import re
import sys
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.rig import REPOSITORY, must, run

pytestmark = pytest.mark.cluster


def told(config: Cluster, change: Callable[[str], str] = str) -> tuple[int, str]:
    """What `otr doctor --cluster` says of the file with a change."""
    file = config.file.with_name("changed.yaml")
    file.write_text(change(config.file.read_text()))
    doctor = [sys.executable, str(REPOSITORY / "pipelines" / "doctor.py")]
    done = run(*doctor, "--cluster", str(file), cwd=config.code)
    return done.returncode, " ".join(done.stdout.split())


def test_a_host_that_is_off(config: Cluster) -> None:
    code, said = told(config)
    assert code == 1
    assert re.search(r"10\.77\.0\.13 can't be reached \(.*\): start it and its sshd", said), said


def test_a_wrong_key(config: Cluster) -> None:
    other = config.file.with_name("other-key")
    must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    code, said = told(config, lambda text: text.replace(str(config.hosts.key), str(other)))
    assert code == 1
    assert f"refuses root with the key {other}: give the right auth.ssh_private_key" in said, said


def without_two(text: str) -> str:
    return text.replace(", 10.77.0.13]", "]")


def test_a_cluster_without_fault(config: Cluster) -> None:
    code, said = told(config, without_two)
    assert code == 0, said


def test_another_ray(config: Cluster) -> None:
    """A venv in the place of ours, with a package that calls itself ray 2.40."""
    home = config.hosts.directory / "homes" / "one"
    shim = home / "other"
    must("mkdir", "-p", f"{shim}/bin", f"{shim}/ray-2.40.0.dist-info")
    (shim / "ray-2.40.0.dist-info" / "METADATA").write_text("Name: ray\nVersion: 2.40.0\n")
    (shim / "bin" / "ray").symlink_to("/bin/true")
    script = '#!/bin/sh\nPYTHONPATH=/root/other exec /root/otr-venv/bin/python "$@"\n'
    (shim / "bin" / "python").write_text(script)
    (shim / "bin" / "python").chmod(0o755)
    rc = home / ".bashrc"
    before = rc.read_text()
    try:
        rc.write_text(f"{before}\nexport PATH=/root/other/bin:$PATH\n")
        code, said = told(config, without_two)
    finally:
        rc.write_text(before)
    assert code == 1
    assert "10.77.0.12 has ray 2.40.0, the project 2.60.0" in said, said


def test_a_directory_that_the_head_alone_has(config: Cluster) -> None:
    code, said = told(config, lambda t: without_two(t).replace("/mnt/otr/runs", "/root/runs"))
    assert code == 1
    assert "/root on 10.77.0.11 is not the one of 10.77.0.12: mount there what" in said, said
