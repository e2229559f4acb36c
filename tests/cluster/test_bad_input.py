"""`otr doctor --cluster` reports a wrong host, key, version or directory in one clear line."""

import re
import sys
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.rig import REPOSITORY, must, run

pytestmark = pytest.mark.cluster


def run_doctor(config: Cluster, change: Callable[[str], str] = str) -> tuple[int, str]:
    """Run `otr doctor --cluster` on a changed cluster file; return its exit code and output."""
    file = config.file.with_name("changed.yaml")
    file.write_text(change(config.file.read_text()))
    doctor = [sys.executable, str(REPOSITORY / "pipelines" / "doctor.py")]
    done = run(*doctor, "--cluster", str(file), cwd=config.code)
    return done.returncode, " ".join(done.stdout.split())


def test_host_that_is_off(config: Cluster) -> None:
    code, text = run_doctor(config)
    assert code == 1
    assert re.search(r"10\.77\.0\.13 can't be reached \(.*\): start it and its sshd", text), text


def test_wrong_key(config: Cluster) -> None:
    other = config.file.with_name("other-key")
    must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    code, text = run_doctor(config, lambda t: t.replace(str(config.hosts.key), str(other)))
    assert code == 1
    assert f"refuses root with the key {other}: give the right auth.ssh_private_key" in text, text


def without_two(text: str) -> str:
    return text.replace(", 10.77.0.13]", "]")


def test_correct_cluster(config: Cluster) -> None:
    code, text = run_doctor(config, without_two)
    assert code == 0, text


def test_other_version_of_ray(config: Cluster) -> None:
    """Put a package that claims to be ray 2.40 first on a host's path."""
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
        code, text = run_doctor(config, without_two)
    finally:
        rc.write_text(before)
    assert code == 1
    assert "10.77.0.12 has ray 2.40.0, but the project uses 2.60.0" in text, text


def test_directory_that_only_the_head_has(config: Cluster) -> None:
    code, text = run_doctor(config, lambda t: without_two(t).replace("/mnt/otr/runs", "/root/runs"))
    assert code == 1
    assert "/root on 10.77.0.11 is not the same directory on 10.77.0.12: mount there" in text, text
