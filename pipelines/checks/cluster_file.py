"""What can be wrong with a file for `ray up`, as far as the file alone tells.

In: the file's content, a dict. Out: a line that tells what was found, or a ValueError with the
remedy. Nothing is asked over the network.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Cluster = Mapping[str, Any]
PLACEHOLDER = "CHANGE"
_PROVIDER_KEYS = {
    "coordinator_address",
    "external_head_ip",
    "key_pair",
}  # Ray's, but not its schema's
_AWS_KEYS = {"SubnetIds"}  # of a node_config, that are not of EC2 but of Ray
_GCP_KEYS = {"sourceInstanceTemplate"}


def read(file: str) -> dict[str, Any]:
    """The content of a file for `ray up`.

    Raises:
        ValueError: it is none.
        OSError: it can't be read.
    """
    try:
        cluster = yaml.safe_load(Path(file).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if isinstance(cluster, dict) and str(cluster.get("apiVersion", "")).startswith("ray.io/"):
        raise ValueError(
            f"{file} is for KubeRay, not for ray up: kubectl apply --dry-run=server -f {file}"
        )
    if not isinstance(cluster, dict) or not isinstance(cluster.get("provider"), dict):
        raise ValueError(f"{file} is no file for ray up: it has no provider")
    return cluster


def schema(cluster: Cluster) -> str:
    """It fits Ray's schema and the cloud's API, and has no key that nobody reads."""
    validator = jsonschema.Draft7Validator(_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(cluster))
    if error is not None:
        where = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            _known(error.instance, error.schema["properties"], where)
        raise ValueError(f"{where or 'the file'}: {error.message}")
    provider = cluster["provider"]
    _known(
        provider, {*_schema()["properties"]["provider"]["properties"], *_PROVIDER_KEYS}, "provider"
    )
    if provider["type"] == "local" and not {"head_ip", "worker_ips"} <= provider.keys():
        raise ValueError("provider: a cluster of one's own hosts needs head_ip and worker_ips")
    types = cluster.get("available_node_types", {})
    if types and cluster.get("head_node_type") not in types:
        raise ValueError(
            f"head_node_type is {cluster.get('head_node_type')!r}: {', '.join(types)}?"
        )
    look = {"aws": aws_node, "gcp": gcp_node}.get(provider["type"])
    for name, node_type in types.items():
        if look:
            look(node_type["node_config"], f"available_node_types.{name}.node_config")
    return f"{provider['type']}, no unknown key"


def values(cluster: Cluster) -> str:
    """No value is left that a person must change; the image has the project's Ray."""
    left = [path for path, value in _leaves(cluster.get("metadata", {})) if PLACEHOLDER in value]
    if left:
        raise ValueError(f"still to be filled in, under metadata: {', '.join(left)}")
    image = cluster.get("docker", {}).get("image", "")
    tag = re.search(r":(\d+\.\d+\.\d+)", image)
    if tag and tag[1] != version("ray"):
        raise ValueError(
            f"docker.image is {image}, but this project runs Ray {version('ray')}: take that image"
        )
    return f"image {image}" if image else "no image: on the hosts as they are"


def mounts(cluster: Cluster) -> str:
    """What is to be copied to the nodes is there, the token among it."""
    for remote, local in cluster.get("file_mounts", {}).items():
        if not Path(local).expanduser().exists():
            how = ": ray get-auth-token --generate" if local.endswith("auth_token") else ""
            raise ValueError(f"file_mounts: no {local} here, for {remote}{how}")
    for kind in ("head", "worker"):
        commands = " ".join(cluster.get(f"{kind}_start_ray_commands", []))
        if "RAY_AUTH_MODE=token" not in commands:
            raise ValueError(
                f"{kind}_start_ray_commands: without RAY_AUTH_MODE=token whoever reaches a node "
                "may run code there"
            )
    return f"{len(cluster.get('file_mounts', {}))} files, token authentication"


def credentials(cluster: Cluster) -> str:
    """The cloud's credentials are there; whether they suffice only the cloud knows."""
    if cluster["provider"]["type"] == "aws":
        if _boto().Session().get_credentials() is None:
            raise ValueError("no AWS credentials: aws configure, or set AWS_PROFILE")
        return "of AWS; whether they suffice, only ray up tells"
    from google import auth

    try:
        auth.default()
    except auth.exceptions.DefaultCredentialsError as error:
        raise ValueError("no Google credentials: gcloud auth application-default login") from error
    return "of Google Cloud; whether they suffice, only ray up tells"


def aws_node(node: Cluster, where: str) -> None:
    """A node_config is what EC2's RunInstances takes.

    Raises:
        ValueError: it is not, or boto3 is not installed.
    """

    ours = {key: value for key, value in node.items() if key not in _AWS_KEYS}
    shape = _run_instances().input_shape
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **ours}, shape)
    if report.has_errors():
        told = report.generate_report().partition(", must be one of")[0]
        raise ValueError(f"{where}: {told}")


def gcp_node(node: Cluster, where: str) -> None:
    """A node_config is what Compute Engine's instances.insert takes.

    Raises:
        ValueError: it has a key that Instance has not, or google-api-python-client is missing.
    """
    ours = {key: value for key, value in node.items() if key not in _GCP_KEYS}
    _fits(ours, {"$ref": "Instance"}, where)


def _fits(value: Any, shape: Mapping[str, Any], where: str) -> None:
    """Of Google's discovery documents: every key is known, at every depth."""
    shape = _compute()[shape["$ref"]] if "$ref" in shape else shape
    kinds = {"object": dict, "array": list, "boolean": bool}
    if not isinstance(value, kinds.get(shape["type"], str | int | float)):
        raise ValueError(f"{where} is {value!r}, but must be of type {shape['type']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _fits(item, shape["items"], f"{where}.{index}")
    elif isinstance(value, dict) and "properties" in shape:
        _known(value, shape["properties"], where)
        for key, item in value.items():
            _fits(item, shape["properties"][key], f"{where}.{key}")


def _known(given: Mapping[str, Any], known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1, 0)[0]
            raise ValueError(f"{where or 'the file'}: no key {key!r}: did you mean {near!r}?")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, str(value)


@functools.cache
def _schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def _boto() -> Any:
    try:
        import boto3
    except ImportError:
        raise ValueError("boto3 is not installed, and ray up needs it: pip install boto3") from None
    return boto3


@functools.cache
def _run_instances() -> Any:
    _boto()
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model(
        "RunInstances"
    )


@functools.cache
def _compute() -> dict[str, Any]:
    try:
        from googleapiclient.discovery_cache import get_static_doc
    except ImportError:
        raise ValueError(
            "google-api-python-client is not installed, and ray up needs it: "
            "pip install google-api-python-client"
        ) from None
    return json.loads(get_static_doc("compute", "v1"))["schemas"]
