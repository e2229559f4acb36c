"""The cluster of docs/cluster/onpremises.yaml on pretend hosts, used from outside.

Runs `ray up`, `ray job submit` and `ray down`, and reads Ray's dashboard and MLflow through an SSH
tunnel. The cluster file is the one in docs/, with the addresses of the pretend hosts and less
memory. Jobs upload a copy of the repository, so that edits during the tests change nothing.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.cluster.rig import REPOSITORY, Hosts, must, run, wait_for

FILE = REPOSITORY / "docs" / "cluster" / "onpremises.yaml"
WORKERS = ("one", "two")
CPUS = 3  # logical CPUs of a worker: enough for a trial and the engine
# Most of a fault's cost is the time until Ray notices it; with Ray's defaults 13 s and more.
FAST = """AUTOSCALER_HEARTBEAT_TIMEOUT_S=10 AUTOSCALER_UPDATE_INTERVAL_S=1
    RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
    RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3"""
SECRET = f"hf_{uuid.uuid4().hex}"  # set in the environment of every process
OUTPUT = "/mnt/otr/runs"
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"


class Cluster:
    """A cluster of a head and `WORKERS`."""

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts = hosts
        self.file, self.code = directory / "cluster.yaml", directory / "code"
        self.began = time.monotonic()
        self._tunnel: subprocess.Popen[bytes] | None = None
        self._copy_code()
        self.file.write_text(self._config())
        for name in ("head", *WORKERS):
            self._install(name)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": DASHBOARD, "HF_TOKEN": SECRET}
        must("ray", "get-auth-token", "--generate")

    def _copy_code(self) -> None:
        listed = must("git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard")
        must("mkdir", "-p", str(self.code))
        done = subprocess.run(
            ["rsync", "-a", "--ignore-missing-args", "--files-from=-", f"{REPOSITORY}/", self.code],
            input=listed,
            text=True,
        )
        assert done.returncode == 0

    def _config(self) -> str:
        addresses = self.hosts.addresses
        memory = "--object-store-memory=150000000"
        changes = {
            "&head 10.0.0.10": f"&head {addresses['head']}",
            "[10.0.0.11, 10.0.0.12]": f"[{', '.join(addresses[name] for name in WORKERS)}]",
            "&user ubuntu": "&user root",
            "~/.ssh/id_ed25519": str(self.hosts.key),
            "RAY_enable_autoscaler_v2=0": f"RAY_enable_autoscaler_v2=0 {FAST}",
            "ray start --head": f"ray start --head {memory}",
            "ray start --address": f"ray start --num-cpus={CPUS} {memory} --address",
        }
        text = FILE.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    def _install(self, name: str) -> None:
        """Leave on a host what the set-up command would: this environment, and its marker file."""
        home = self.hosts.directory / "homes" / name
        (home / "otr-venv").mkdir(parents=True)
        for part in ("bin", "lib", "pyvenv.cfg"):
            (home / "otr-venv" / part).symlink_to(f"{sys.prefix}/{part}")
        names = ("requirements-gpu.txt",)
        sums = {n: hashlib.sha256((self.code / n).read_bytes()).hexdigest() for n in names}
        lines = [f"{total}  /root/otr/{name}\n" for name, total in sums.items()]
        (home / "otr-venv" / "installed").write_text("".join(lines))
        (home / ".bashrc").write_text(f"export HF_TOKEN={SECRET}\n")

    def up(self) -> str:
        """Run `ray up`; return its output."""
        self.began = time.monotonic()
        done = run("ray", "up", "-y", str(self.file), cwd=self.code)
        assert done.returncode == 0, done.stdout
        self.tunnel()
        return done.stdout

    def down(self) -> None:
        """Stop the cluster with the commands in the header of the cluster file."""
        done = run("ray", "down", "-y", str(self.file), cwd=self.code)
        assert done.returncode == 0, done.stdout
        last = re.search(r"#   ssh USER@HOST '(.*)'", FILE.read_text())
        assert last
        for name in ("head", *WORKERS):
            run(*self.hosts.ssh_words(name), last[1])

    def tunnel(self) -> None:
        """Forward the two ports of the head; call again after its host was off."""
        if self._tunnel is not None:
            self._tunnel.kill()
            self._tunnel.wait()
        ports = [word for p in (8265, 5000) for word in ("-L", f"{p}:127.0.0.1:{p}")]
        words = self.hosts.ssh_words("head", "-N", *ports)
        self._tunnel = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        wait_for(lambda: self.ask("/api/version"), "the dashboard", 60)

    def ask(self, path: str, **headers: str) -> Any:
        """Return the JSON answer of Ray's dashboard; None if it does not answer."""
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", **headers}
        try:
            request = urllib.request.Request(f"{DASHBOARD}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return None

    def nodes(self) -> set[str]:
        """Return the names of the hosts whose node is alive."""
        answer = self.ask("/api/v0/nodes") or {"data": {"result": {"result": []}}}
        alive = {n["node_ip"] for n in answer["data"]["result"]["result"] if n["state"] == "ALIVE"}
        return {name for name, address in self.hosts.addresses.items() if address in alive}

    def wait_for_nodes(self, *names: str, seconds: float = 120) -> None:
        """Wait until these nodes and no others are alive."""
        wait_for(lambda: self.nodes() == set(names), f"the nodes {names}", seconds)

    def hosts_of(self, title: str) -> list[str]:
        """Return the worker hosts with a process whose title contains `title`."""
        found = []
        for name in WORKERS:
            done = run(*self.hosts.ssh_words(name), "ps -eo args=")
            if title in done.stdout:
                found.append(name)
        return found

    def sweep(self, name: str, *options: str) -> "Job":
        """Submit a sweep of the debug preset, and follow its log."""
        words = ["--preset", "debug", "--name", name, "--output", OUTPUT, *options]
        return Job(self, ["python", "pipelines/full_sweep.py", *words])

    def reports(self, name: str) -> list[tuple[str, int]]:
        """Return trial and step of each report of a sweep in MLflow, in order of time."""
        client = MlflowClient(MLFLOW)
        found = [
            (metric.timestamp, run.info.run_name, metric.step)
            for run in client.search_runs(["1"], f"tags.`otr.sweep` = '{name}'")
            for metric in client.get_metric_history(run.info.run_id, "nll")
        ]
        return [(trial, step) for _, trial, step in sorted(found)]

    def folder(self, name: str) -> Path:
        """Return the directory of a sweep on the storage host."""
        return self.hosts.storage / "runs" / name


class Job:
    """A submitted job, whose log is followed."""

    def __init__(self, cluster: Cluster, words: Sequence[str]) -> None:
        self.cluster, self.began = cluster, time.monotonic()
        self.file = cluster.file.with_name(f"job-{self.began}.log")
        submit = ["ray", "job", "submit", "--working-dir", ".", "--", *words]
        with self.file.open("w") as log:
            self._process = subprocess.Popen(
                submit, cwd=cluster.code, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """Output so far."""
        return self.file.read_text()

    @property
    def id(self) -> str:
        """Ray's id of the job."""
        found = wait_for(lambda: re.search(r"Job '(\w+)' submitted", self.log), "the job", 60)
        return found[1]

    def wait(self) -> int:
        """Wait for the job to end; return its exit code."""
        return self._process.wait()

    def wait_for(self, event: Callable[[], Any], what: str, seconds: float = 600) -> Any:
        """Wait until `event` returns a true value and return it; the job must not end before."""
        try:
            wait_for(lambda: event() or self.ended(), what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; output of the job:\n{self.log}") from None
        found = event()
        assert found, f"the job ended without {what}:\n{self.log}"
        return found

    def until(self, text: str, seconds: float = 600) -> str:
        """Wait until the log matches the pattern `text`; return the match."""
        return self.wait_for(lambda: re.search(text, self.log), repr(text), seconds)[0]

    def ended(self) -> bool:
        """Return whether `ray job submit` has reported the end of the job."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Run `ray job stop` and wait for the job to end."""
        must("ray", "job", "stop", self.id)
        self._process.wait()
