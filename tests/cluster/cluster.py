"""The cluster of docs/cluster/onpremises.yaml on pretend hosts, as a person outside uses it.

In: `Hosts`. Out: `ray up`, `ray job submit`, `ray down`, and what can be read through SSH's tunnel:
Ray's dashboard and MLflow. The file is the one of docs/, with the hosts' own addresses and with
less memory; a second copy of the repository is what is sent, so that nobody's edit changes it.
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

from tests.cluster.rig import REPOSITORY, Hosts, must, run, wait_for

FILE = REPOSITORY / "docs" / "cluster" / "onpremises.yaml"
WORKERS = ("one", "two")
CPUS = 3  # logical, of a worker: a trial and the engine
# What a fault costs is mostly the time until Ray believes it; with its own values 13 s and more.
FAST = """AUTOSCALER_HEARTBEAT_TIMEOUT_S=10 AUTOSCALER_UPDATE_INTERVAL_S=1
    RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
    RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3"""
SECRET = f"hf_{uuid.uuid4().hex}"  # in the environment of everything
OUTPUT = "/mnt/otr/runs"
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"


class Cluster:
    """Of a head and `WORKERS`."""

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
        at = self.hosts.addresses
        memory = "--object-store-memory=150000000"
        changes = {
            "&head 10.0.0.10": f"&head {at['head']}",
            "[10.0.0.11, 10.0.0.12]": f"[{', '.join(at[name] for name in WORKERS)}]",
            "&user ubuntu": "&user root",
            "~/.ssh/id_ed25519": str(self.hosts.key),
            "RAY_enable_autoscaler_v2=0": f"RAY_enable_autoscaler_v2=0 {FAST}",
            "ray start --head": f"ray start --head {memory}",
            "ray start --address": f"ray start --num-cpus={CPUS} {memory} --address",
        }
        text = FILE.read_text()
        for ours, theirs in changes.items():
            assert text.count(ours) == 1, ours
            text = text.replace(ours, theirs)
        return text

    def _install(self, name: str) -> None:
        """What the set-up command would leave there: this environment, and the mark of it."""
        home = self.hosts.directory / "homes" / name
        (home / "otr-venv").mkdir(parents=True)
        for part in ("bin", "lib", "pyvenv.cfg"):
            (home / "otr-venv" / part).symlink_to(f"{sys.prefix}/{part}")
        names = ("requirements-gpu.txt", "requirements.txt")
        sums = {n: hashlib.sha256((self.code / n).read_bytes()).hexdigest() for n in names}
        lines = [f"{total}  /root/otr/{name}\n" for name, total in sums.items()]
        (home / "otr-venv" / "installed").write_text("".join(lines))
        (home / ".bashrc").write_text(f"export HF_TOKEN={SECRET}\n")

    def up(self) -> str:
        """`ray up`; returns what it said."""
        self.began = time.monotonic()
        done = run("ray", "up", "-y", str(self.file), cwd=self.code)
        assert done.returncode == 0, done.stdout
        self.tunnel()
        return done.stdout

    def down(self) -> None:
        """As the head of the file says."""
        done = run("ray", "down", "-y", str(self.file), cwd=self.code)
        assert done.returncode == 0, done.stdout
        last = re.search(r"#   ssh USER@HOST '(.*)'", FILE.read_text())
        assert last
        for name in ("head", *WORKERS):
            run(*self.hosts.ssh_words(name), last[1])

    def tunnel(self) -> None:
        """Forward the two ports of the head, again where its host was off."""
        if self._tunnel is not None:
            self._tunnel.kill()
            self._tunnel.wait()
        ports = [word for p in (8265, 5000) for word in ("-L", f"{p}:127.0.0.1:{p}")]
        words = self.hosts.ssh_words("head", "-N", *ports)
        self._tunnel = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        wait_for(lambda: self.ask("/api/version"), "the dashboard", 60)

    def ask(self, path: str, **headers: str) -> Any:
        """What Ray's dashboard answers, as JSON; None where it doesn't."""
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", **headers}
        try:
            request = urllib.request.Request(f"{DASHBOARD}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return None

    def nodes(self) -> set[str]:
        """Names of the hosts whose node is alive."""
        told = self.ask("/api/v0/nodes") or {"data": {"result": {"result": []}}}
        alive = {n["node_ip"] for n in told["data"]["result"]["result"] if n["state"] == "ALIVE"}
        return {name for name, address in self.hosts.addresses.items() if address in alive}

    def wait_for_nodes(self, *names: str, seconds: float = 120) -> None:
        """Until these and no others are alive."""
        wait_for(lambda: self.nodes() == set(names), f"the nodes {names}", seconds)

    def hosts_of(self, title: str) -> list[str]:
        """The worker hosts on which a process has such a title."""
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
        """Trial and step of each report of a sweep, as its driver keeps them for MLflow."""
        outbox = self.folder(name) / "outbox.jsonl"
        lines = outbox.read_text().splitlines() if outbox.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [(each["trial"], each["step"]) for each in entries if each["do"] == "log"]

    def folder(self, name: str) -> Path:
        """Of a sweep, as the storage host has it."""
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
        """What it said so far."""
        return self.file.read_text()

    @property
    def id(self) -> str:
        """By which Ray knows it."""
        found = wait_for(lambda: re.search(r"Job '(\w+)' submitted", self.log), "the job", 60)
        return found[1]

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait()

    def wait_for(self, event: Callable[[], Any], what: str, seconds: float = 600) -> Any:
        """What `event` gives as soon as that is true; the job must not end before."""
        try:
            wait_for(lambda: event() or self.ended(), what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; the job said:\n{self.log}") from None
        found = event()
        assert found, f"the job ended without {what}:\n{self.log}"
        return found

    def until(self, text: str, seconds: float = 600) -> str:
        """Wait until the log has a match of `text`; returns that."""
        return self.wait_for(lambda: re.search(text, self.log), repr(text), seconds)[0]

    def ended(self) -> bool:
        """Whether its end is told."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """`ray job stop`, at its end."""
        must("ray", "job", "stop", self.id)
        self._process.wait()
