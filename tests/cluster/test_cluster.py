"""`ray up`, a submitted sweep, a host that joins late, and what can be read from outside."""

import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.cluster import MLFLOW, SECRET, Cluster
from tests.cluster.conftest import STEPS, Sweep
from tests.cluster.rig import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

KEPT = ".cache/otr/packed/*.arrow"
# Ray's own, which it can't be told to bind to one address; its gRPC wants the token.
EVERYWHERE = {"gcs_server", "raylet", "ray::DashboardA", "python"}


def runs_of(sweep: str) -> dict[str, str]:
    """Ids of the runs in MLflow by trial, "" for the sweep's own, read through the tunnel."""
    client = MlflowClient(MLFLOW)
    found = client.search_runs(["1"], f"tags.`otr.sweep` = '{sweep}'")
    ids = {each.data.tags["otr.trial"]: each.info.run_id for each in found}
    assert len(ids) == len(found), "a trial has two runs"
    return ids


def test_the_packages_were_there_and_stayed(cluster: Cluster) -> None:
    home = cluster.hosts.directory / "homes" / "one" / "otr-venv"
    assert sorted(path.name for path in home.iterdir()) == ["bin", "installed", "lib", "pyvenv.cfg"]


def test_what_listens_is_local_or_wants_the_token(cluster: Cluster) -> None:
    for name in ("head", "one"):
        local = ("127.0.0.1:", f"{cluster.hosts.addresses[name]}:")
        lines = cluster.hosts.ssh(name, "ss -ltnpH").stdout.splitlines()
        found = [re.search(r"(\S+):\d+ +\S+ +users:\(\(\"([^\"]+)", line) for line in lines]
        open_to_all = {
            match[2]
            for match in found
            if match and f"{match[1].strip('[]').removeprefix('::ffff:')}:" not in local
        }
        assert open_to_all - {"sshd"} <= EVERYWHERE, open_to_all
    answer = run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "127.0.0.1:8265/api/jobs/")
    assert answer.stdout == "401"
    head = f"{cluster.hosts.addresses['head']}:6379"
    asked = run("env", "RAY_AUTH_MODE=disabled", "ray", "status", "--address", head)
    assert asked.returncode != 0 and "uthentication" in asked.stdout, asked.stdout[-500:]
    assert run("curl", "-s", "-m", "3", f"{head.split(':')[0]}:5000").returncode == 7  # refused


def test_a_submitted_sweep_can_be_read_from_outside(sweep: Sweep, tmp_path: Path) -> None:
    assert "✓ score" in sweep.job.log
    client, ids = MlflowClient(MLFLOW), runs_of("debug")
    assert set(ids) == {"", "base", "sft-seed0", "otr-k16-seed0"}
    assert all(client.get_run(each).info.status == "FINISHED" for each in ids.values())
    for name in ("leaderboard.json", "report.html"):
        client.download_artifacts(ids[""], name, str(tmp_path))
    rows = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {row["mlflow_run"] for row in rows if row["mlflow_run"]} <= set(ids.values())
    assert all(row["scores"] for row in rows)
    assert "<html" in (tmp_path / "report.html").read_text()
    steps = [m.step for m in client.get_metric_history(ids["sft-seed0"], "nll")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_a_host_that_joined_late_is_used_at_once(cluster: Cluster, sweep: Sweep) -> None:
    assert sweep.places == [["one"], ["one", "two"]]
    trials = [trial for trial, _ in cluster.reports("debug")]
    assert trials.index("otr-k16-seed0") < len(trials) - trials[::-1].index("sft-seed0")


def test_each_host_that_trained_keeps_the_packed_corpus(cluster: Cluster, sweep: Sweep) -> None:
    kept = {
        name: {path.name for path in (cluster.hosts.directory / "homes" / name).glob(KEPT)}
        for name in ("head", "one", "two")
    }
    assert kept["one"] and kept["two"] == kept["one"] and not kept["head"]


def test_a_planted_secret_is_nowhere(cluster: Cluster, sweep: Sweep) -> None:
    """It was in the environment of the launcher and of all of Ray's processes on the hosts."""
    assert SECRET in cluster.hosts.ssh("one", "cat /proc/$(pgrep -x raylet)/environ").stdout
    assert SECRET not in sweep.job.log
    for name, places in (("nas", "/srv"), ("head", "/tmp ~ /var"), ("one", "/tmp ~ /var")):
        found = run(*cluster.hosts.ssh_words(name), f"grep -rlaF {SECRET} {places}").stdout
        assert set(found.split()) <= {"/root/.bashrc"}, found
