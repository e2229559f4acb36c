"""Check a cluster file for `ray up` by its content alone; nothing is asked over the network.

`read` loads the file. Each check returns a line that reports what it found, or raises a ValueError
with the remedy.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from otr.hints import did_you_mean
from pipelines._compat import cluster_schema

Cluster = Mapping[str, Any]
"""The content of a cluster file."""
PLACEHOLDER = "CHANGE"
"""Marks a value that a person must fill in."""
# Keys that Ray reads but that the schemas below do not list.
_PROVIDER_KEYS = {"coordinator_address", "external_head_ip", "key_pair"}
_AWS_NODE_KEYS = {"SubnetIds"}
_GCP_NODE_KEYS = {"sourceInstanceTemplate"}


def read(file: str) -> dict[str, Any]:
    """Return the content of a cluster file.

    Raises:
        ValueError: it is not a file for `ray up`.
        OSError: it can't be read.
    """
    try:
        cluster = yaml.safe_load(Path(file).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if isinstance(cluster, dict) and str(cluster.get("apiVersion", "")).startswith("ray.io/"):
        raise ValueError(
            f"{file} is for KubeRay, not for ray up: kubectl apply --dry-run=server -f {file}"
        )
    if not isinstance(cluster, dict) or not isinstance(cluster.get("provider"), dict):
        raise ValueError(f"{file} is not a file for ray up: it has no provider")
    return cluster


def check_schema(cluster: Cluster) -> str:
    """Check the file against Ray's schema and the cloud's API, and for keys that nothing reads.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type.
    """
    schema = _ray_schema()
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft7Validator(schema).iter_errors(cluster)
    )
    if error is not None:
        path = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            _require_known(error.instance, error.schema["properties"], path)
        raise ValueError(f"{path or 'the file'}: {error.message}")
    provider = cluster["provider"]
    known = {*schema["properties"]["provider"]["properties"], *_PROVIDER_KEYS}
    _require_known(provider, known, "provider")
    if provider["type"] == "local" and not {"head_ip", "worker_ips"} <= provider.keys():
        raise ValueError("provider: type local needs head_ip and worker_ips")
    if provider["type"] == "local" and not cluster.get("auth", {}).get("ssh_user"):
        raise ValueError("auth: type local needs ssh_user, the user that the hosts know")
    types = cluster.get("available_node_types", {})
    if types and cluster.get("head_node_type") not in types:
        raise ValueError(
            f"head_node_type is {cluster.get('head_node_type')!r}: use one of {', '.join(types)}"
        )
    check_node = {"aws": check_aws_node, "gcp": check_gcp_node}.get(provider["type"])
    for name, node_type in types.items():
        if check_node:
            check_node(node_type["node_config"], f"available_node_types.{name}.node_config")
    return f"{provider['type']}, no unknown key"


def check_values(cluster: Cluster) -> str:
    """Check that no placeholder is left and that the image has the project's version of Ray.

    Raises:
        ValueError: a value must still be filled in, or the image has another Ray.
    """
    open_paths = [
        path for path, value in _leaves(cluster.get("metadata", {})) if PLACEHOLDER in value
    ]
    if open_paths:
        raise ValueError(f"still to be filled in, under metadata: {', '.join(open_paths)}")
    image = cluster.get("docker", {}).get("image", "")
    tag = re.search(r":(\d+\.\d+\.\d+)", image)
    if tag and tag[1] != version("ray"):
        raise ValueError(
            f"docker.image is {image}, but this project runs Ray {version('ray')}: use that image"
        )
    return f"image {image}" if image else "no image: packages are installed on the hosts"


def check_mounts(cluster: Cluster) -> str:
    """Check that the files to copy to the nodes exist and that Ray authenticates by token.

    Raises:
        ValueError: a file is missing, or a start command does not set RAY_AUTH_MODE=token.
    """
    mounts = cluster.get("file_mounts", {})
    for remote, local in mounts.items():
        if not Path(local).expanduser().exists():
            remedy = ": ray get-auth-token --generate" if local.endswith("auth_token") else ""
            raise ValueError(
                f"file_mounts: {local}, for {remote}, does not exist on this machine{remedy}"
            )
    for kind in ("head", "worker"):
        commands = " ".join(cluster.get(f"{kind}_start_ray_commands", []))
        if "RAY_AUTH_MODE=token" not in commands:
            raise ValueError(
                f"{kind}_start_ray_commands: without RAY_AUTH_MODE=token, anyone who can reach a "
                "node can run code there"
            )
    return f"{len(mounts)} files, token authentication"


def check_credentials(cluster: Cluster) -> str:
    """Check that credentials for the cloud exist; only the cloud knows whether they suffice.

    Raises:
        ValueError: there are none.
    """
    if cluster["provider"]["type"] == "aws":
        if _boto3().Session().get_credentials() is None:
            raise ValueError("no AWS credentials: aws configure, or set AWS_PROFILE")
        return "AWS credentials exist; ray up will show whether they suffice"
    from google import auth

    try:
        auth.default()
    except auth.exceptions.DefaultCredentialsError as error:
        raise ValueError("no Google credentials: gcloud auth application-default login") from error
    return "Google Cloud credentials exist; ray up will show whether they suffice"


def check_aws_node(node: Cluster, path: str) -> None:
    """Check that EC2's RunInstances accepts a node_config.

    Raises:
        ValueError: it does not, or boto3 is not installed.
    """
    parameters = {key: value for key, value in node.items() if key not in _AWS_NODE_KEYS}
    shape = _run_instances().input_shape
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **parameters}, shape)
    if report.has_errors():
        text = report.generate_report().partition(", must be one of")[0]
        raise ValueError(f"{path}: {text}")


def check_gcp_node(node: Cluster, path: str) -> None:
    """Check that Compute Engine's instances.insert accepts a node_config.

    Raises:
        ValueError: it does not, or google-api-python-client is not installed.
    """
    parameters = {key: value for key, value in node.items() if key not in _GCP_NODE_KEYS}
    _require_fit(parameters, {"$ref": "Instance"}, path)


def _require_fit(value: Any, schema: Mapping[str, Any], path: str) -> None:
    """Check types and keys, at every depth, against a schema of Google's discovery document."""
    schema = _compute_schemas()[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "boolean": bool}
    if not isinstance(value, types.get(schema["type"], str | int | float)):
        raise ValueError(f"{path} is {value!r}, but must be of type {schema['type']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _require_fit(item, schema["items"], f"{path}.{index}")
    elif isinstance(value, dict) and "properties" in schema:
        _require_known(value, schema["properties"], path)
        for key, item in value.items():
            _require_fit(item, schema["properties"][key], f"{path}.{key}")


def _require_known(given: Mapping[str, Any], known: Any, path: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(
                f"{path or 'the file'}: unknown key {key!r}: {did_you_mean(key, known)}"
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of each value that is not a mapping or a list."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, str(value)


@functools.cache
def _ray_schema() -> dict[str, Any]:
    return cluster_schema()


# boto3 and Google's client are not dependencies of the project: only `ray up` needs them.


def _boto3() -> Any:
    try:
        import boto3
    except ImportError:
        raise ValueError("boto3 is not installed, and ray up needs it: pip install boto3") from None
    return boto3


@functools.cache
def _run_instances() -> Any:
    _boto3()
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model(
        "RunInstances"
    )


@functools.cache
def _compute_schemas() -> dict[str, Any]:
    try:
        from googleapiclient.discovery_cache import get_static_doc
    except ImportError:
        raise ValueError(
            "google-api-python-client is not installed, and ray up needs it: "
            "pip install google-api-python-client"
        ) from None
    return json.loads(get_static_doc("compute", "v1"))["schemas"]
