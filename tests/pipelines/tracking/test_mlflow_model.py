"""Tests that a registered checkpoint can be loaded by MLflow's own function."""

from pathlib import Path

import pytest
import torch

from pipelines.builtin import corpus
from pipelines.tracking.mlflow_model import write_mlmodel
from pipelines.tracking.mlflow_store import SWEEP, Store
from pipelines.tracking.tracker import store_uri


def test_a_registered_checkpoint_loads_with_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.transformers
    from transformers import AutoModelForCausalLM

    checkpoint = tmp_path / "step-000001"
    checkpoint.mkdir()
    for file in Path(corpus.__file__).parent.joinpath("base").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    uri = store_uri(str(tmp_path))
    store = Store(uri, "mine", "1")
    store.start(SWEEP, {}, {}, 0)
    store.register(SWEEP, checkpoint, "the best")
    store.register(SWEEP, checkpoint, "the best")  # a repeated command
    (version,) = store._client.search_model_versions("name = 'otr-mine'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.transformers.load_model(f"models:/otr-mine/{version.version}")
    ids = loaded.tokenizer("What is two plus two?", return_tensors="pt").input_ids
    original = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, original(ids).logits)
    assert loaded.tokenizer.chat_template == (checkpoint / "chat_template.jinja").read_text()
    assert "generated_text" in loaded("What is two plus two?", max_new_tokens=2)[0]


def test_an_adapter_has_no_model_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not write_mlmodel(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
