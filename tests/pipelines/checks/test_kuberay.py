"""The KubeRay file uses known keys only, and configures what cluster.yaml configures.

KubeRay's schema is not available without a cluster. The keys below are those that the file uses,
copied from the API references of KubeRay (1.5) and Kubernetes. A cluster checks all of them:
kubectl apply --dry-run=server.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
KUBERAY = "docs/cluster/kuberay.yaml"

_RESOURCES = {"requests": {"*": None}, "limits": {"*": None}}
_CONTAINER = {
    **dict.fromkeys(("name", "image", "command", "args")),
    "env": [{"name": None, "value": None}],
    "resources": _RESOURCES,
    "volumeMounts": [{"name": None, "mountPath": None}],
}
_POD = {
    "spec": {
        "nodeSelector": {"*": None},
        "tolerations": [dict.fromkeys(("key", "operator", "effect", "value"))],
        "securityContext": dict.fromkeys(("fsGroup", "runAsUser", "runAsGroup")),
        "automountServiceAccountToken": None,
        "containers": [_CONTAINER],
        "volumes": [
            {
                "name": None,
                "persistentVolumeClaim": {"claimName": None},
                "emptyDir": {"medium": None},
            }
        ],
    }
}
_GROUP = {"rayStartParams": {"*": None}, "template": _POD}
RAY_JOB = {
    **dict.fromkeys(("apiVersion", "kind")),
    "metadata": {"name": None, "labels": {"*": None}, "annotations": {"*": None}},
    "spec": {
        **dict.fromkeys(("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")),
        "rayClusterSpec": {
            **dict.fromkeys(("rayVersion", "enableInTreeAutoscaling")),
            "autoscalerOptions": {"idleTimeoutSeconds": None},
            "authOptions": {"mode": None},
            "headGroupSpec": {"serviceType": None, **_GROUP},
            "workerGroupSpecs": [
                {**dict.fromkeys(("groupName", "minReplicas", "maxReplicas")), **_GROUP}
            ],
        },
    },
}


def load(file: str) -> dict[str, Any]:
    return yaml.safe_load(text(file))


def text(file: str) -> str:
    return (ROOT / file).read_text()


def unknown(value: Any, known: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of a RayJob's keys that are not among the known ones."""
    if isinstance(value, list) and isinstance(known, list):
        for item in value:
            yield from unknown(item, known[0], path)
    elif isinstance(value, dict) and isinstance(known, dict):
        for key, item in value.items():
            if key in known or "*" in known:
                yield from unknown(item, known.get(key, known.get("*")), f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif known is not None or (isinstance(value, dict) and known is None):
        yield path


def test_all_keys_are_known() -> None:
    job = load(KUBERAY)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert [*unknown(job, RAY_JOB)] == []
    job["spec"]["entryPoint"] = "x"
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volume"] = []
    assert [*unknown(job, RAY_JOB)] == [
        ".spec.rayClusterSpec.workerGroupSpecs.template.spec.volume",
        ".spec.entryPoint",
    ]


def test_kuberay_configures_what_the_others_configure() -> None:
    spec = load(KUBERAY)["spec"]["rayClusterSpec"]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0" and head["serviceType"] == "ClusterIP"
    assert spec["authOptions"] == {"mode": "token"}
    start = " ".join(load("cluster.yaml")["head_start_ray_commands"])
    ray, mlflow = head["template"]["spec"]["containers"]
    for variable in ray["env"]:
        assert f"{variable['name']}={variable['value']}" in start
    (served,) = re.findall(r"mlflow server .*?artifacts\b(?= <)", start)
    assert served in mlflow["args"][0]
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    for container in (ray, mlflow, worker):
        assert {"name": "shared", "mountPath": "/mnt/otr"} in container["volumeMounts"]
    assert load("cluster.yaml")["metadata"]["output"] in load(KUBERAY)["spec"]["entrypoint"]


def test_versions_match_the_lock_file() -> None:
    (pin,) = re.findall(r"^ray==([\d.]+)", text("requirements.txt"), re.M)
    assert load(KUBERAY)["spec"]["rayClusterSpec"]["rayVersion"] == pin
    assert f"FROM rayproject/ray:{pin}-py311-gpu\n" in text("docs/cluster/Dockerfile")
