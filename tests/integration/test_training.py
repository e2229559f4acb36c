"""A run under Ray Train: from the corpus to a checkpoint that loads, and on from where it broke."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otr import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    Objective,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.loop.checkpoint import load_checkpoint
from otr.models.tokenizer import load_tokenizer
from otr.training import checkpoint_store
from otr.training.driver import fit, worker_error
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration


def config(model: Path, data: Path, **changes: Any) -> TrainConfig:
    data_config = DataConfig((str(data),), sequence_length=64, validation=(str(data),))
    base = TrainConfig(
        ModelConfig(str(model)),
        data_config,
        max_steps=6,
        global_batch_size=4,
        micro_batch_size=2,
        log_interval=2,
        eval_interval=6,
        checkpoint_interval=2,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("assets")
    rows = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(60)]
    lines = [json.dumps(row) for row in rows] + ["{broken"]
    (directory / "rows.jsonl").write_text("\n".join(lines))
    return make_tiny_model(directory / "model"), directory / "rows.jsonl"


@pytest.fixture(scope="module")
def whole(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, paths: tuple[Path, Path]
) -> Path:
    """The directory of an undisturbed run of one worker."""
    storage = tmp_path_factory.mktemp("whole")
    fit(config(*paths), storage=str(storage), name="run", callbacks=[Recorder(storage / "log")])
    return storage / "run"


class Recorder(ray.train.UserCallback):
    """Writes down each report; raises at the steps that it is told to."""

    def __init__(self, log: Path, error: Exception | None = None, at: int = 4) -> None:
        self.log, self.error, self.at = log, error, at

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(metrics[0]) + "\n")
        if self.error is not None and metrics[0]["step"] == self.at:
            raise self.error


def reports(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def weights(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_workers_train_a_model_that_transformers_loads(
    whole: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Its curve is that of one worker, row for row."""
    run = config(*paths, workers=Workers(count=2), micro_batch_size=1)
    callbacks = [Recorder(tmp_path / "log")]
    result = fit(run, storage=str(tmp_path), name="run", run={"arm": "otr"}, callbacks=callbacks)
    assert result.metrics["step"] == 6
    told = reports(tmp_path / "log")
    for ours, alone in zip(told, reports(whole.parent / "log"), strict=True):
        assert ours["nll"] == pytest.approx(alone["nll"], rel=1e-4)
    assert told[0]["note"] == "ddp on 2 workers"
    assert 0 < result.metrics["val_nll"] < 10
    rejected = {n: v for n, v in result.metrics.items() if n.startswith("rejected/")}
    assert rejected == {"rejected/broken": 1}
    directory = tmp_path / "run" / "step-000006"
    assert result.checkpoint.path == str(directory)
    assert json.loads((directory / "run.json").read_text()) == {"arm": "otr"}
    assert load_checkpoint(directory)["step"] == 6
    kept = sorted(p.name for p in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-000004", "step-000006"]
    assert not torch.equal(weights(directory), weights(paths[0]))
    assert AutoTokenizer.from_pretrained(directory).chat_template
    [sample] = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(sample)["cause"] == "broken"


def test_the_best_checkpoint_is_kept_and_the_last_two(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """The more is learned, the less likely is what validation wants to see."""
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"{i} + 1?", "completion": "qqqqqqqq"} for i in range(20)]
    other.write_text("\n".join(map(json.dumps, rows)))
    run = config(*paths, optim=OptimConfig(lr=1e-2, warmup_steps=2), max_steps=10, eval_interval=2)
    run = replace(run, objective=Objective("sft"))
    run = replace(run, data=replace(run.data, validation=(str(other),)))
    fit(run, storage=str(tmp_path), name="run", callbacks=[Recorder(tmp_path / "log")])
    measured = {r["step"]: r["val_nll"] for r in reports(tmp_path / "log") if "val_nll" in r}
    best = min(measured, key=lambda step: measured[step])
    assert best < 8, "one that would have stayed as one of the last"
    kept = {int(path.name[5:]) for path in (tmp_path / "run").glob("step-*")}
    assert kept == {best, 8, 10}
    assert checkpoint_store.best_checkpoint(str(tmp_path / "run")) == f"step-{best:06d}"


def test_a_lost_controller_is_replaced(
    whole: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    callback = Recorder(tmp_path / "log", RuntimeError("the power failed"))
    result = fit(config(*paths), storage=str(tmp_path), name="run", callbacks=[callback])
    assert result.metrics["step"] == 6
    notes = [report["note"] for report in reports(tmp_path / "log") if "note" in report]
    assert len(notes) == 2 and "resumes from step" in notes[1]
    assert torch.equal(weights(tmp_path / "run" / "step-000006"), weights(whole / "step-000006"))


def test_a_damaged_checkpoint_is_passed_over(
    whole: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Of a run that is begun again, whatever is damaged: a bit, a file's end, a whole file."""
    for number, damage in enumerate((flip, cut, remove)):
        storage = tmp_path / str(number)
        shutil.copytree(whole, storage / "run")
        shutil.rmtree(storage / "run" / "step-000006")
        shutil.copytree(storage / "run" / "step-000004", storage / "run" / "step-000006")
        victim = damage(storage / "run" / "step-000006")
        log = storage / "log"
        fit(config(*paths), storage=str(storage), name="run", callbacks=[Recorder(log)])
        note = reports(log)[0]["note"]
        assert victim in note and "resumes from step 4" in note
        assert (storage / "run" / "damaged-step-000006").is_dir()
        again = weights(storage / "run" / "step-000006")
        assert torch.equal(again, weights(whole / "step-000006"))


def flip(checkpoint: Path) -> str:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return "model.safetensors is not as it was written"


def cut(checkpoint: Path) -> str:
    [path] = checkpoint.glob("trainer/optimizer/*.distcp")
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path.name} is not as it was written"


def remove(checkpoint: Path) -> str:
    (checkpoint / "trainer" / "state.json").unlink()
    return "no trainer/state.json"


def test_another_number_of_workers_goes_on_and_other_settings_do_not(
    whole: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "step-000006")
    changed = config(*paths, objective=Objective("sft"), seed=1)
    with pytest.raises(ValueError, match=r"objective.name was 'otr', is 'sft'; seed was 0, is 1"):
        fit(changed, storage=str(tmp_path), name="run")
    (tmp_path / "other").mkdir()
    other = make_tiny_model(tmp_path / "other" / "model", seed=1)  # of the same name
    with pytest.raises(ValueError, match=r"settings: model.weights was .*model.safetensors"):
        fit(config(other, paths[1]), storage=str(tmp_path), name="run")
    (edited := tmp_path / "rows.jsonl").write_text(paths[1].read_text().replace("7 + 1", "7 + 2"))
    with pytest.raises(ValueError, match=r"settings: data.files was .*rows.jsonl"):
        fit(config(paths[0], edited), storage=str(tmp_path), name="run")
    two = config(*paths, workers=Workers(count=2), micro_batch_size=1)
    fit(two, storage=str(tmp_path), name="run", callbacks=[Recorder(tmp_path / "log")])
    told = reports(tmp_path / "log")
    assert "had 1 workers, has 2: the same rows in each step" in told[0]["note"]
    assert told[-1]["nll"] == pytest.approx(reports(whole.parent / "log")[-1]["nll"], rel=1e-4)


def test_an_error_of_ours_ends_the_run_and_says_why(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    run = config(*paths)
    broken = replace(run, model=replace(run.model, path=str(tmp_path / "model")))
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(broken, storage=str(tmp_path), name="run")
    assert worker_error(error.value).startswith(f"no tokenizer at '{tmp_path}/model'")
    long = replace(run, data=replace(run.data, sequence_length=4096))
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(long, storage=str(tmp_path), name="long")
    assert "has 1024 positions: give --train.data.sequence-length 1024" in worker_error(error.value)


def test_rows_of_a_step_that_overflows_are_kept(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Such a learning rate leaves weights whose gradient is not finite, in no row alone."""
    run = config(*paths, workers=Workers(2), optim=OptimConfig(lr=1e30))
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(run, storage=str(tmp_path), name="run")
    assert "step 2: loss " in worker_error(error.value)
    tokenizer, seen = load_tokenizer(run.model), []
    for rank in range(2):
        file = tmp_path / "run" / f"bad-000002-{rank}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        seen += [row["row"] for row in rows]
        assert all(row["text"] == tokenizer.decode(row["input_ids"]) for row in rows)
        assert all(" + 1?" in row["text"] for row in rows)
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("rank", [0, 4], ids=["whole", "lora"])
def test_a_sharded_run_goes_on(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path], rank: int
) -> None:
    run = config(
        *paths, workers=Workers(2), memory=MemoryConfig("fsdp"), lora=LoraConfig(rank=rank)
    )
    fit(run, storage=str(tmp_path), name="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "step-000006")
    fit(run, storage=str(tmp_path), name="parts")
    name = "adapter_model.safetensors" if rank else "model.safetensors"
    bits = [(tmp_path / n / "step-000006" / name).read_bytes() for n in ("whole", "parts")]
    assert bits[0] == bits[1]


def test_a_stop_file_saves_and_ends(whole: Path, tmp_path: Path, paths: tuple[Path, Path]) -> None:
    stop = tmp_path / "stop"
    stop.touch()
    run = config(*paths, checkpoint_interval=0)
    result = fit(run, storage=str(tmp_path), name="run", stop_file=str(stop))
    assert result.metrics["step"] == 1
    stop.unlink()
    result = fit(run, storage=str(tmp_path), name="run", stop_file=str(stop))
    assert result.metrics["step"] == 6
    assert torch.equal(weights(tmp_path / "run" / "step-000006"), weights(whole / "step-000006"))


def test_adapters_are_trained_and_go_on(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    run = config(*paths, lora=LoraConfig(rank=4))
    fit(run, storage=str(tmp_path), name="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "step-000006")
    fit(run, storage=str(tmp_path), name="parts")
    one, two = ((tmp_path / n / "step-000006") for n in ("whole", "parts"))
    assert (one / "adapter_model.safetensors").is_file()
    assert not (one / "model.safetensors").exists()
    bits = [(d / "adapter_model.safetensors").read_bytes() for d in (one, two)]
    assert bits[0] == bits[1]
