"""`otr push`, with a stand-in for the hub; large files by LFS, since Xet needs a real server."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.settings import free_port
from otr import LoraConfig, ModelConfig, load_model, load_tokenizer, save_checkpoint
from otr.config import DataConfig, TrainConfig
from otr.models.lora import adapter_state, add_adapters, write_adapter
from pipelines import cli
from pipelines.report import leaderboard
from pipelines.report.leaderboard import BASE, Entry
from tests.assets.hub import Hub, serve_hub
from tests.assets.tiny import make_tiny_model

TOKEN = "hf_planted5f3a"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def train_config(tmp_path: Path) -> TrainConfig:
    data = DataConfig((str(tmp_path / "secret" / "mine.jsonl"), "hf:openai/gsm8k"))
    return TrainConfig(ModelConfig("org/base-1B"), data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in the directory of a sweep that scored it."""
    base = ModelConfig(str(make_tiny_model(tmp_path / "base")))
    step = tmp_path / "runs" / "mine" / "trials" / "otr-seed0" / "train" / "step-000010"
    step.parent.mkdir(parents=True)
    run = {"trial": {}, "config": asdict(train_config(tmp_path))}
    save_checkpoint(step, load_model(base), load_tokenizer(base), run=run)
    score = {"metric": "accuracy", "num_examples": 100, "settings": {}, "also": {}}
    of_base = {"gsm8k": {"task": "gsm8k", "value": 0.1, "low": 0.05, "high": 0.2, **score}}
    of_trial = {"gsm8k": {"task": "gsm8k", "value": 0.57, "low": 0.47, "high": 0.67, **score}}
    trial = Entry("otr-seed0", "otr", {}, 1e-4, 0, "finished", of_trial, checkpoint=str(step))
    entries = [Entry(BASE, BASE, None, None, None, BASE, of_base), trial]
    leaderboard.write(entries, tmp_path / "runs" / "mine" / "leaderboard.json")
    return step


def push(*words: object) -> int:
    return cli.main(["push", *map(str, words)])


def fetched(hub: Hub, repo: str, folder: Path) -> Path:
    """The files of a repository as a directory."""
    for name, content in hub.repos[repo].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_model_is_pushed_with_a_card(
    hub: Hub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (checkpoint / "MLmodel").write_text("for MLflow")
    (checkpoint / "components" / "tokenizer").mkdir(parents=True)
    (checkpoint / "components" / "tokenizer" / "config.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert push(checkpoint, "me/mine", "--private") == 0
    out, err = capsys.readouterr()
    assert f"pushed: {hub.url}/me/mine/commit/" in out and TOKEN not in out + err
    assert [(c["name"], c["visibility"]) for c in hub.created] == [("mine", "private")]
    assert len(hub.commits) == 1 and "step-000010" in hub.commits[0]["summary"]
    held = set(hub.repos["me/mine"])
    assert held >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert not {n for n in held if n.startswith(("trainer", "run.json", "components", "MLmodel"))}
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before
    copy = fetched(hub, "me/mine", tmp_path / "copy")
    mine, theirs = (AutoModelForCausalLM.from_pretrained(d) for d in (checkpoint, copy))
    ids = torch.arange(20)[None]
    assert torch.equal(mine(ids).logits, theirs(ids).logits)
    assert AutoTokenizer.from_pretrained(copy).chat_template


def test_the_card(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    assert push(checkpoint, "me/mine") == 0
    card = ModelCard(hub.repos["me/mine"]["README.md"].decode())
    assert card.data.base_model == "org/base-1B" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "| objective | name otr, num_samples 256" in card.text
    assert "| data | `mine.jsonl`, `openai/gsm8k` |" in card.text
    assert "| gsm8k | 10.0 [5, 20] | 57.0 [47, 67] | 100 |" in card.text
    assert str(tmp_path) not in card.content


def test_an_adapter_is_pushed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_tiny_model(tmp_path / "base")
    model = add_adapters(load_model(ModelConfig(str(tmp_path / "base"))), LoraConfig(rank=2))
    adapter = tmp_path / "adapter"
    write_adapter(adapter, model, adapter_state(model))
    assert push(adapter, "me/adapter") == 0
    assert "names its base model by a path" in " ".join(capsys.readouterr().err.split())
    card = ModelCard(hub.repos["me/adapter"]["README.md"].decode())
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.base_model is None and "`base`" in card.text, "a path names no model"
    copy = fetched(hub, "me/adapter", tmp_path / "copy")
    weights = "adapter_model.safetensors"
    assert (copy / weights).read_bytes() == (adapter / weights).read_bytes()

    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "org/base-1B"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert push(adapter, "me/other") == 0
    assert "by a path" not in capsys.readouterr().err
    card = ModelCard(hub.repos["me/other"]["README.md"].decode())
    assert card.data.base_model == "org/base-1B"


def test_a_card_that_exists_stays(hub: Hub, checkpoint: Path) -> None:
    assert push(checkpoint, "me/mine") == 0
    hub.repos["me/mine"]["README.md"] = b"mine"
    assert push(checkpoint, "me/mine") == 0, "again, into the repository that exists"
    assert hub.repos["me/mine"]["README.md"] == b"mine"
    (checkpoint / "README.md").write_text("the checkpoint's own")
    assert push(checkpoint, "me/mine") == 0
    assert hub.repos["me/mine"]["README.md"] == b"the checkpoint's own"


def test_everything(hub: Hub, checkpoint: Path) -> None:
    assert push(checkpoint, "mine", "--everything") == 0
    assert set(hub.repos["me/mine"]) >= {"run.json", "trainer/state.json", "trainer/files-0.json"}


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert push(*words) == 1
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_pushes_that_are_refused(
    hub: Hub,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert "no model in" in refused(capsys, tmp_path, "me/mine")
    assert "me//mine was not pushed" in refused(capsys, checkpoint, "me//mine")
    hub.may_write = False
    line = refused(capsys, checkpoint, "me/mine")
    assert "me/mine was not pushed: the token in HF_TOKEN may not write to it (403)" in line
    hub.token = "another"
    assert "the hub does not know the token in HF_TOKEN (401)" in refused(
        capsys, checkpoint, "me/mine"
    )
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert "me/mine was not pushed: " in refused(capsys, checkpoint, "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN" in refused(capsys, checkpoint, "me/mine")
    assert hub.repos == {}


def test_damaged_and_unverified_checkpoints_are_refused(
    hub: Hub, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    unverified = checkpoint.with_name("unverified-step-000010")
    shutil.copytree(checkpoint, unverified)
    (unverified / "unverified.json").write_text("{}")
    assert "failed its check" in refused(capsys, unverified, "me/mine")
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert "is not as it was written" in refused(capsys, checkpoint, "me/mine")
    assert hub.repos == {}
