"""cluster.yaml is what Ray 2.60 accepts, and matches the project's own pins."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_it_fits_rays_schema() -> None:
    jsonschema.validate(CLUSTER, SCHEMA)


def test_a_legacy_key_would_not() -> None:
    with pytest.raises(jsonschema.ValidationError, match="head_node"):
        jsonschema.validate(CLUSTER | {"head_node": {}}, SCHEMA)


def test_every_version_is_the_projects() -> None:
    (ray_pin,) = re.findall(r"^ray==([\d.]+)", text("requirements.txt"), re.M)
    assert CLUSTER["docker"]["image"] == f"rayproject/ray:{ray_pin}-py311-gpu"
    (torch_pin,) = re.findall(r"^TORCH := (\S+)", text("Makefile"), re.M)
    assert f"torch=={torch_pin}\n" in text("requirements-gpu.txt")
    for name in re.findall(r"~/otr/(\S+)", " ".join(CLUSTER["setup_commands"])):
        assert CLUSTER["file_mounts"][f"~/otr/{name}"] == f"./{name}" and text(name)


def test_the_head_runs_no_trial_and_workers_are_spot() -> None:
    head, gpu = (CLUSTER["available_node_types"][n] for n in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def text(name: str) -> str:
    return (ROOT / name).read_text()
