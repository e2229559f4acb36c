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
    pins = dict(re.findall(r"^(ray)==([\d.]+)", text("requirements.txt"), re.M))
    pins |= {
        name.lower(): version
        for name, version in re.findall(r"^(TORCH|VLLM) := (\S+)", text("Makefile"), re.M)
    }
    assert set(pins) == {"ray", "torch", "vllm"}
    assert f"rayproject/ray:{pins['ray']}-py311-gpu" == CLUSTER["docker"]["image"]
    for name in ("torch", "vllm"):
        assert f"{name}=={pins[name]}" in CLUSTER["setup_commands"][0]
        assert f"{name}" in text("pyproject.toml")


def test_the_head_runs_no_trial_and_workers_are_spot() -> None:
    head, gpu = (CLUSTER["available_node_types"][n] for n in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def text(name: str) -> str:
    return (ROOT / name).read_text()
