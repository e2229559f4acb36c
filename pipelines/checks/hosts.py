"""What can be wrong with a cluster before `ray up`, looked at one by one, in seconds.

In: a file for `ray up`. Out: checks by name; each returns a line that tells what was found, or
raises a ValueError with the remedy. Of hosts of one's own also what SSH tells; the only thing
written there is a probe in the shared directory, which is removed.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.checks import cluster_file
from pipelines.checks.cluster_file import Cluster

STOPS = {"file", "schema", "hosts"}
"""The checks that the rest builds on."""
PYTHON = "python{}.{}".format(*sys.version_info)
_SSH = [  # as Ray's own launcher, but that it never asks
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
]
_SECONDS = 60  # for a command on a host
_MARK = "otr-doctor:"  # begins our line: a profile may print others
_ASK = f"""
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {{"python": platform.python_version()}}
for name in ("ray", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print("{_MARK}" + json.dumps(found))
"""


def checks(file: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of a file, in order; one that has failed and is in `STOPS` must be the last."""
    cluster: dict = {}

    def read() -> str:
        cluster.update(cluster_file.read(file))
        return file

    yield "file", read
    yield "schema", partial(cluster_file.schema, cluster)
    yield "values", partial(cluster_file.values, cluster)
    yield "mounts", partial(cluster_file.mounts, cluster)
    if cluster["provider"]["type"] == "local":
        yield "hosts", partial(hosts, cluster)
        yield "versions", partial(versions, cluster)
        yield "storage", partial(storage, cluster)
    elif cluster["provider"]["type"] in ("aws", "gcp"):
        yield "credentials", partial(cluster_file.credentials, cluster)


def hosts(cluster: Cluster) -> str:
    """Every host lets us in, with the key."""
    key = cluster.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        raise ValueError(f"auth.ssh_private_key: no {key} here")
    answers = _on(cluster, addresses(cluster), "true")
    if bad := [
        f"{host} {_refusal(cluster, answer)}" for host, answer in answers if _failed(answer)
    ]:
        raise ValueError("; ".join(bad))
    return f"{len(answers)} hosts let {cluster['auth']['ssh_user']} in"


def versions(cluster: Cluster) -> str:
    """What is installed on a host already is of the project's versions."""
    if cluster.get("docker", {}).get("image"):
        return "of the image"
    # Where Ray is, its own interpreter; before the set-up, the one that this will use.
    script = (
        f"python={PYTHON}; where=$(command -v ray) && python=$(dirname $where)/python; "
        f"$python -c {shlex.quote(_ASK)}"
    )
    bad, fresh = [], 0
    for host, answer in _on(cluster, addresses(cluster), script):
        found = json.loads(_said(answer) or "{}")
        if not found:
            bad.append(f"{host} has no {PYTHON}: install it there")
        fresh += bool(found) and "ray" not in found
        bad += [f"{host} has {told}" for told in differences(found)]
    if bad:
        raise ValueError("; ".join(bad))
    return f"{fresh} hosts without packages yet, no other version"


def differences(found: dict[str, str]) -> Iterator[str]:
    """What of a node's versions (of python, ray, torch) is not this process's, in words."""
    ours = {"python": sys.version.split()[0]}
    for name in ("ray", "torch"):
        try:
            ours[name] = version(name)
        except PackageNotFoundError:
            continue
    for name, there in found.items():
        here = ours.get(name, there)
        if _compared(name, there) != _compared(name, here):
            yield f"{name} {there}, the project {here}: install requirements-gpu.txt there"


def _compared(name: str, text: str) -> str:
    """Of Python the minor version; of a package all but the build, as in 2.13.0+cpu."""
    return ".".join(text.split(".")[:2]) if name == "python" else text.partition("+")[0]


def storage(cluster: Cluster) -> str:
    """What the head writes below `metadata.output`, every worker sees."""
    output = cluster.get("metadata", {}).get("output")
    if not output:
        return "no metadata.output in the file: not looked at"
    head, *workers = addresses(cluster)
    probe = f"d={shlex.quote(output)}; until [ -d $d ]; do d=$(dirname $d); done; "
    probe += f'f=$(mktemp $d/.otr-doctor-XXXXXX) && echo "{_MARK}$f"'
    ((_, answer),) = _on(cluster, [head], probe)
    mark = _said(answer)
    if not mark:
        raise ValueError(f"{output} on {head}: {_last(answer)}: let the user write there")
    try:
        seen = _on(cluster, workers, f"[ -f {mark} -a -w {mark} ] && echo {_MARK}yes")
    finally:
        _on(cluster, [head], f"rm {mark}")
    if blind := [host for host, answer in seen if _said(answer) != "yes"]:
        raise ValueError(
            f"{Path(mark).parent} on {head} is not the one of {', '.join(blind)}: mount there what "
            f"all hosts share and may write to, or give another metadata.output than {output}"
        )
    return f"{output} is the same on {1 + len(workers)} hosts"


def addresses(cluster: Cluster) -> list[str]:
    """Of the hosts, the head's first."""
    return [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]


Answer = subprocess.CompletedProcess


def _on(cluster: Cluster, there: Sequence[str], script: str) -> list[tuple[str, Answer]]:
    """Run a script on hosts side by side, in the shell that Ray's commands get."""
    if not there:
        return []
    shell = shlex.join(["bash", "--login", "-i", "-c", f"source ~/.bashrc; {script}"])
    with ThreadPoolExecutor(len(there)) as pool:
        return list(zip(there, pool.map(partial(_ssh, cluster, shell), there), strict=True))


def _ssh(cluster: Cluster, command: str, host: str) -> Answer:
    auth = cluster.get("auth", {})
    words = [*_SSH, f"{auth['ssh_user']}@{host}", command]
    if key := auth.get("ssh_private_key"):
        words[1:1] = ["-i", str(Path(key).expanduser())]
    if proxy := auth.get("ssh_proxy_command"):
        words[1:1] = ["-o", f"ProxyCommand={proxy}"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return Answer(words, 255, "", f"no answer within {_SECONDS} s")


def _failed(answer: Answer) -> bool:
    return answer.returncode == 255  # ssh's own errors


def _refusal(cluster: Cluster, answer: Answer) -> str:
    auth = cluster["auth"]
    if "Permission denied" in answer.stderr:
        return (
            f"refuses {auth['ssh_user']} with the key {auth.get('ssh_private_key', 'of ssh')}: "
            "give the right auth.ssh_private_key, or put its public half into authorized_keys there"
        )
    return f"can't be reached ({_last(answer)}): start it and its sshd, or correct provider"


def _said(answer: Answer) -> str:
    """Our line of what a script printed."""
    lines = [line for line in answer.stdout.splitlines() if line.startswith(_MARK)]
    return lines[-1].removeprefix(_MARK) if lines else ""


def _last(answer: Answer) -> str:
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
