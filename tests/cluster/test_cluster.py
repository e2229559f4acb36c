"""`ray up`, a submitted sweep, a host that joins late, and the results read from outside."""

import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.cluster import MLFLOW, SECRET, Cluster
from tests.cluster.conftest import STEPS, Sweep
from tests.cluster.rig import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PACKED_CACHE = ".cache/otr/packed/*.arrow"
# Ray's processes that have no option to bind to one address; their gRPC requires the token.
UNBOUND = {"gcs_server", "raylet", "ray::DashboardA", "python"}


def runs_of(sweep: str) -> dict[str, str]:
    """Return the ids of a sweep's MLflow runs by trial; the parent run has the key ""."""
    client = MlflowClient(MLFLOW)
    found = client.search_runs(["1"], f"tags.`otr.sweep` = '{sweep}'")
    ids = {each.data.tags["otr.trial"]: each.info.run_id for each in found}
    assert len(ids) == len(found), "a trial has two runs"
    return ids


def test_installed_packages_are_reused(cluster: Cluster) -> None:
    home = cluster.hosts.directory / "homes" / "one" / "otr-venv"
    assert sorted(path.name for path in home.iterdir()) == ["bin", "installed", "lib", "pyvenv.cfg"]


def test_open_ports_are_local_or_require_the_token(cluster: Cluster) -> None:
    for name in ("head", "one"):
        local = ("127.0.0.1:", f"{cluster.hosts.addresses[name]}:")
        lines = cluster.hosts.ssh(name, "ss -ltnpH").stdout.splitlines()
        found = [re.search(r"(\S+):\d+ +\S+ +users:\(\(\"([^\"]+)", line) for line in lines]
        open_to_all = {
            match[2]
            for match in found
            if match and f"{match[1].strip('[]').removeprefix('::ffff:')}:" not in local
        }
        assert open_to_all - {"sshd"} <= UNBOUND, open_to_all
    answer = run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "127.0.0.1:8265/api/jobs/")
    assert answer.stdout == "401"
    head = f"{cluster.hosts.addresses['head']}:6379"
    status = run("env", "RAY_AUTH_MODE=disabled", "ray", "status", "--address", head)
    assert status.returncode != 0 and "uthentication" in status.stdout, status.stdout[-500:]
    assert run("curl", "-s", "-m", "3", f"{head.split(':')[0]}:5000").returncode == 7  # refused


def test_results_can_be_read_from_outside(sweep: Sweep, tmp_path: Path) -> None:
    assert "✓ score" in sweep.job.log
    client, ids = MlflowClient(MLFLOW), runs_of("debug")
    assert set(ids) == {"", "base", "sft-seed0", "otr-k16-seed0"}
    assert all(client.get_run(each).info.status == "FINISHED" for each in ids.values())
    for name in ("leaderboard.json", "report.html"):
        client.download_artifacts(ids[""], name, str(tmp_path))
    entries = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {e["mlflow_run"] for e in entries if e["mlflow_run"]} <= set(ids.values())
    assert all(entry["scores"] for entry in entries)
    assert "<html" in (tmp_path / "report.html").read_text()
    steps = [m.step for m in client.get_metric_history(ids["sft-seed0"], "nll")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_late_host_is_used_at_once(cluster: Cluster, sweep: Sweep) -> None:
    assert sweep.worker_hosts == [["one"], ["one", "two"]]
    trials = [trial for trial, _ in cluster.reports("debug")]
    assert trials.index("otr-k16-seed0") < len(trials) - trials[::-1].index("sft-seed0")


def test_each_host_that_trained_caches_the_packed_corpus(cluster: Cluster, sweep: Sweep) -> None:
    cached = {
        name: {path.name for path in (cluster.hosts.directory / "homes" / name).glob(PACKED_CACHE)}
        for name in ("head", "one", "two")
    }
    assert cached["one"] and cached["two"] == cached["one"] and not cached["head"]


def test_secret_of_the_environment_is_written_nowhere(cluster: Cluster, sweep: Sweep) -> None:
    """It was in the environment of the launcher and of all of Ray's processes on the hosts."""
    assert SECRET in cluster.hosts.ssh("one", "cat /proc/$(pgrep -x raylet)/environ").stdout
    assert SECRET not in sweep.job.log
    for name, paths in (("nas", "/srv"), ("head", "/tmp ~ /var"), ("one", "/tmp ~ /var")):
        found = run(*cluster.hosts.ssh_words(name), f"grep -rlaF {SECRET} {paths}").stdout
        assert set(found.split()) <= {"/root/.bashrc"}, found
