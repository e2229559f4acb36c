"""The project's cluster files are valid for Ray and the cloud, and differ only where they must."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.checks import cluster_file

ROOT = Path(__file__).parents[3]
FILES = {
    "aws": "cluster.yaml",
    "gcp": "docs/cluster/gcp.yaml",
    "local": "docs/cluster/onpremises.yaml",
}
OTHERS = ("docs/cluster/kuberay.yaml", "docs/cluster/Dockerfile")
MAY_DIFFER = {  # key of cluster.yaml to the variants in which it may differ or be absent
    "metadata": {"gcp", "local"},
    "provider": {"gcp", "local"},
    "auth": {"local"},
    "available_node_types": {"gcp", "local"},
    "initialization_commands": {"gcp", "local"},
    "head_setup_commands": {"gcp", "local"},
    "docker": {"local"},
    "max_workers": {"local"},
    "idle_timeout_minutes": {"local"},
    "head_node_type": {"local"},
}
ONLY_LOCAL = '--node-ip-address=$(echo $SSH_CONNECTION | cut -d" " -f3)'  # in its start commands
PLACEHOLDERS = {
    "aws": ["machine_image", "security_group", "storage", "tags.Value"],
    "gcp": ["project", "network.subnetwork", "storage", "labels.owner"],
    "local": [],
}
SECRET = re.compile(r"AKIA\w{16}|hf_\w{20,}|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{32,}\b")


def load(file: str) -> dict[str, Any]:
    return yaml.safe_load(text(file))


def text(file: str) -> str:
    return (ROOT / file).read_text()


@pytest.fixture(params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    needs = {"aws": "botocore", "gcp": "googleapiclient"}
    if request.param in needs:
        pytest.importorskip(needs[request.param])
    return load(FILES[request.param])


def test_ray_and_the_cloud_accept_the_file(cluster: dict[str, Any]) -> None:
    assert cluster_file.check_schema(cluster).endswith("no unknown key")
    validate_config(prepare_config(copy.deepcopy(cluster)))


def broken(cluster: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield copies with one mistake each, and a text that the message must contain."""

    def with_(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        changed = copy.deepcopy(cluster)
        change(changed)
        return changed

    yield with_(lambda c: c.update(head_node={})), "head_node"  # key of an older schema
    yield with_(lambda c: c["provider"].update(regoin="x")), "'region'"
    yield with_(lambda c: c["auth"].update(ssh_usr="x")), "'ssh_user'"
    yield with_(lambda c: c.update(max_workers="8")), "max_workers"
    if "docker" in cluster:
        types = "available_node_types"
        yield with_(lambda c: c["docker"].update(images="x")), "'image'"
        yield with_(lambda c: c[types]["gpu"].update(max_worker=1)), "'max_workers'"
        yield with_(lambda c: c.update(head_node_type="heads")), "'heads'"
        yield with_(lambda c: c[types]["gpu"]["node_config"].update(Spot=1)), "gpu.node_config"
    else:
        yield with_(lambda c: c["provider"].pop("head_ip")), "head_ip"
        yield with_(lambda c: c.pop("auth")), "auth: type local needs ssh_user"
    if cluster["provider"]["type"] == "aws":
        disk = cluster["available_node_types"]["gpu"]["node_config"]["BlockDeviceMappings"][0]
        node = {"InstanceType": "m5.large", "BlockDeviceMappings": [copy.deepcopy(disk)]}
        node["BlockDeviceMappings"][0]["Ebs"]["VolumSize"] = 1
        yield with_(lambda c: c[types]["gpu"].update(node_config=node)), "VolumSize"
    if cluster["provider"]["type"] == "gcp":
        late = {"scheduling": {"provisioningModl": "SPOT"}}
        yield with_(lambda c: c[types]["gpu"]["node_config"].update(late)), "'provisioningModel'"


def test_a_mistake_is_reported_with_its_path(cluster: dict[str, Any]) -> None:
    for copy_, text in broken(cluster):
        with pytest.raises(ValueError, match=re.escape(text)) as error:
            cluster_file.check_schema(copy_)
        assert "\n" not in str(error.value) or "VolumSize" in text


@pytest.mark.parametrize("name", FILES)
def test_values_to_fill_in_come_first(name: str) -> None:
    lines = text(FILES[name]).splitlines()
    first, last = (lines.index(s) for s in lines if s.startswith(("metadata:", "cluster_name:")))
    assert all(line.startswith("#") for line in lines[:first]), "metadata is not first"
    later = [line for line in lines[last:] if cluster_file.PLACEHOLDER in line]
    assert later == []
    if PLACEHOLDERS[name]:
        with pytest.raises(ValueError, match=re.escape(": " + ", ".join(PLACEHOLDERS[name]))):
            cluster_file.check_values(load(FILES[name]))


def test_versions_match_the_lock_file() -> None:
    (ray_pin,) = re.findall(r"^ray==([\d.]+)", text("requirements.txt"), re.M)
    image = f"rayproject/ray:{ray_pin}-py311-gpu"
    for name in ("aws", "gcp"):
        assert load(FILES[name])["docker"]["image"] == image
    assert "PYTHON ?= python3.11\n" in text("Makefile")
    (torch_pin,) = re.findall(r"^TORCH := (\S+)", text("Makefile"), re.M)
    assert f"torch=={torch_pin}\n" in text("requirements-gpu.txt")


def test_image_with_another_ray_is_refused() -> None:
    cluster = {"provider": {}, "docker": {"image": "rayproject/ray:2.9.0-py311-gpu"}}
    with pytest.raises(ValueError, match=r"2\.9\.0.* this project runs Ray"):
        cluster_file.check_values(cluster)


@pytest.mark.parametrize("name", FILES)
def test_packages_come_from_the_lock_file_once_per_node(name: str) -> None:
    cluster = load(FILES[name])
    install, path = cluster["setup_commands"]
    assert "sha256sum" in install and "pip install -q -r ~/otr/requirements-gpu.txt" in install
    assert "otr-venv" in path
    for remote, local in cluster["file_mounts"].items():
        assert remote == "~/.ray/auth_token" or text(local)
    assert "pip" not in " ".join(starts(cluster)), "installed at each start"


@pytest.mark.parametrize("name", FILES)
def test_the_head_runs_no_trial_and_services_listen_on_loopback(name: str) -> None:
    cluster = load(FILES[name])
    head, worker = starts(cluster)
    assert "--num-cpus=0" in head and "--num-cpus" not in worker
    assert "--dashboard-host=127.0.0.1" in head and " --host 127.0.0.1 --port 5000 " in head
    assert "0.0.0.0" not in text(FILES[name]).replace("10.0.0.1", "")
    assert all("RAY_AUTH_MODE=token" in command for command in (head, worker))
    assert (
        cluster_file.check_mounts({**cluster, "file_mounts": {}}) == "0 files, token authentication"
    )
    del cluster["worker_start_ray_commands"][-1]
    with pytest.raises(ValueError, match="anyone who can reach a node"):
        cluster_file.check_mounts(cluster)


def starts(cluster: dict[str, Any]) -> list[str]:
    """Return the start commands of the head and of a worker."""
    return [" ".join(cluster[f"{kind}_start_ray_commands"]) for kind in ("head", "worker")]


def test_missing_file_to_copy() -> None:
    cluster = load(FILES["aws"])
    cluster["file_mounts"] = {"~/.ray/auth_token": "nowhere/auth_token"}
    with pytest.raises(
        ValueError, match=r"nowhere/auth_token, for .* does not exist .*ray get-auth-token"
    ):
        cluster_file.check_mounts(cluster)


def test_only_gpu_nodes_are_spot_instances() -> None:
    aws, gcp = (load(FILES[name])["available_node_types"] for name in ("aws", "gcp"))
    assert aws["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gcp["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert "scheduling" not in gcp["head"]["node_config"]
    for types in (aws, gcp):
        assert types["head"]["resources"] == {"CPU": 0}
        assert types["gpu"]["min_workers"] < types["gpu"]["max_workers"]


def test_nodes_have_no_more_rights_than_needed() -> None:
    types = load(FILES["aws"])["available_node_types"]
    for node_type in types.values():  # Ray's own group opens port 22 to all
        assert node_type["node_config"]["SecurityGroupIds"]
        assert node_type["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    # Without a role, Ray creates one for the head with full access to EC2 and S3.
    assert types["head"]["node_config"]["IamInstanceProfile"]
    assert "IamInstanceProfile" not in types["gpu"]["node_config"]
    assert "serviceAccounts" not in load(FILES["gcp"])["available_node_types"]["gpu"]["node_config"]


@pytest.mark.parametrize("file", [*FILES.values(), *OTHERS])
def test_files_contain_no_secret(file: str) -> None:
    assert not SECRET.search(text(file))
    assert SECRET.search(text(file) + "\n# AKIAIOSFODNN7EXAMPLE"), "the pattern misses a secret"


@pytest.mark.parametrize("name", ["gcp", "local"])
def test_variants_differ_only_where_they_must(name: str) -> None:
    assert differing(load(FILES["aws"]), load(FILES[name]), name) == []


def differing(aws: dict[str, Any], other: dict[str, Any], name: str) -> list[str]:
    free = {key for key, variants in MAY_DIFFER.items() if name in variants}
    if name == "local":
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            other[key] = [command.replace(f" {ONLY_LOCAL}", "") for command in other[key]]
    keys = aws.keys() | other.keys()
    return sorted(key for key in keys - free if aws.get(key) != other.get(key))


def test_other_differences_are_found() -> None:
    for name in ("gcp", "local"):
        other = load(FILES[name])
        other["worker_start_ray_commands"][-1] += " --num-cpus=1"
        other["file_mounts"]["a"] = "b"
        found = differing(load(FILES["aws"]), other, name)
        assert found == ["file_mounts", "worker_start_ray_commands"]
