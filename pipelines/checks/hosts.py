"""Check the hosts that a cluster file names, over SSH, before `ray up`.

The checks only read, except that one writes a temporary file into the shared directory and removes
it.
"""

import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipelines.checks import cluster_file
from pipelines.checks.cluster_file import Cluster
from pipelines.checks.findings import Check
from pipelines.runtime import versions

PYTHON = "python{}.{}".format(*sys.version_info)
_SSH = [  # the options of Ray's own launcher; BatchMode, so that ssh never asks
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
]
_COMMAND_SECONDS = 60
_MARK = "otr-doctor:"  # starts a line of ours: a host's profile may print others
Result = subprocess.CompletedProcess
"""The outcome of a command on a host."""


def cluster_checks(cluster: Cluster) -> list[Check]:
    """Return the checks of a cluster file, in order."""
    valid = frozenset({"schema"})
    checks = [
        Check("schema", partial(cluster_file.check_schema, cluster)),
        Check("values", partial(cluster_file.check_values, cluster), valid),
        Check("mounts", partial(cluster_file.check_mounts, cluster), valid),
    ]
    provider = cluster["provider"].get("type")
    if provider == "local":
        reachable = valid | {"hosts"}
        checks += [
            Check("hosts", partial(check_hosts, cluster), valid),
            Check("versions", partial(check_versions, cluster), reachable),
            Check("storage", partial(check_storage, cluster), reachable),
        ]
    elif provider in ("aws", "gcp"):
        checks.append(Check("credentials", partial(cluster_file.check_credentials, cluster), valid))
    return checks


def check_hosts(cluster: Cluster) -> str:
    """Check that every host accepts the user's SSH key.

    Raises:
        ValueError: the key does not exist, or a host can't be reached or refuses it.
    """
    key = cluster.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        raise ValueError(f"auth.ssh_private_key: {key} does not exist on this machine")
    results = _run_on(cluster, host_addresses(cluster), "true")
    problems = [
        f"{host} {_connection_problem(cluster, result)}"
        for host, result in results.items()
        if result.returncode == 255  # ssh's own errors
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return f"{len(results)} hosts accept SSH as {cluster['auth']['ssh_user']}"


def check_versions(cluster: Cluster) -> str:
    """Check that packages already installed on a host match the lock file.

    Raises:
        ValueError: they do not, or a host has no Python of the right version.
    """
    if cluster.get("docker", {}).get("image"):
        return "those of the image"
    # Use the interpreter of Ray's environment; before the set-up, the one that it will use.
    script = (
        f"python={PYTHON}; ray=$(command -v ray) && python=$(dirname $ray)/python; "
        f"$python -c {shlex.quote(_version_script())}"
    )
    problems, fresh = [], 0
    for host, result in _run_on(cluster, host_addresses(cluster), script).items():
        found = json.loads(_marked_line(result) or "{}")
        if not found:
            problems.append(f"{host} has no {PYTHON}: install it there")
        fresh += bool(found) and "ray" not in found
        problems += [f"{host} has {text}" for text in versions.version_differences(found)]
    if problems:
        raise ValueError("; ".join(problems))
    return f"installed packages match the lock file; {fresh} hosts have none yet"


def check_storage(cluster: Cluster) -> str:
    """Check that every worker sees what the head writes below `metadata.output`.

    Raises:
        ValueError: the head can't write there, or a worker sees another directory.
    """
    output = cluster.get("metadata", {}).get("output")
    if not output:
        return "not checked: the file has no metadata.output"
    head, *workers = host_addresses(cluster)
    write = f"d={shlex.quote(output)}; until [ -d $d ]; do d=$(dirname $d); done; "
    write += f'f=$(mktemp $d/.otr-doctor-XXXXXX) && echo "{_MARK}$f"'
    result = _run_on(cluster, [head], write)[head]
    probe = _marked_line(result)
    if not probe:
        raise ValueError(f"{output} on {head}: {_last_error(result)}: let the user write there")
    try:
        seen = _run_on(cluster, workers, f"[ -f {probe} -a -w {probe} ] && echo {_MARK}yes")
    finally:
        _run_on(cluster, [head], f"rm {probe}")
    if blind := [host for host, result in seen.items() if _marked_line(result) != "yes"]:
        raise ValueError(
            f"{Path(probe).parent} on {head} is not the same directory on {', '.join(blind)}: "
            "mount there what all hosts share and may write to, or give another metadata.output "
            f"than {output}"
        )
    return f"{output} is the same on {1 + len(workers)} hosts"


def _version_script() -> str:
    """Return a Python program that prints a host's versions, for hosts without this package."""
    return (
        f"{inspect.getsource(versions)}\nimport json\n"
        f"print('{_MARK}' + json.dumps(installed_versions({versions.SHARED_PACKAGES})))"
    )


def host_addresses(cluster: Cluster) -> list[str]:
    """Return the addresses of all hosts, the head's first."""
    return [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]


def _run_on(cluster: Cluster, hosts: Sequence[str], script: str) -> dict[str, Result]:
    """Run a script on all hosts at once, in the shell that Ray's commands get."""
    if not hosts:
        return {}
    shell = shlex.join(["bash", "--login", "-i", "-c", f"source ~/.bashrc; {script}"])
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(partial(_ssh, cluster, shell), hosts), strict=True))


def _ssh(cluster: Cluster, command: str, host: str) -> Result:
    auth = cluster.get("auth", {})
    words = [*_SSH, f"{auth['ssh_user']}@{host}", command]
    if key := auth.get("ssh_private_key"):
        words[1:1] = ["-i", str(Path(key).expanduser())]
    if proxy := auth.get("ssh_proxy_command"):
        words[1:1] = ["-o", f"ProxyCommand={proxy}"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return Result(words, 255, "", f"no answer within {_COMMAND_SECONDS} s")


def _connection_problem(cluster: Cluster, result: Result) -> str:
    auth = cluster["auth"]
    if "Permission denied" in result.stderr:
        key = auth.get("ssh_private_key", "that ssh chooses")
        return (
            f"refuses {auth['ssh_user']} with the key {key}: give the right auth.ssh_private_key, "
            "or add its public key to authorized_keys there"
        )
    return f"can't be reached ({_last_error(result)}): start it and its sshd, or correct provider"


def _marked_line(result: Result) -> str:
    """Return the last line with our mark that a script printed, without the mark."""
    lines = [line for line in result.stdout.splitlines() if line.startswith(_MARK)]
    return lines[-1].removeprefix(_MARK) if lines else ""


def _last_error(result: Result) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
