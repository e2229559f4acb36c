"""A run under Ray Train: from a corpus to a checkpoint that loads, and resuming after a fault."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import ray.train
import torch
from safetensors.torch import load_file
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
from otr.loop.checkpoint import check_checkpoint, load_checkpoint
from otr.models.tokenizer import load_tokenizer
from otr.optim import learning_rate
from otr.training import checkpoint_store, driver
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
def undisturbed(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, paths: tuple[Path, Path]
) -> Path:
    """Directory of an undisturbed run with one worker, and with its last two checkpoints."""
    storage = tmp_path_factory.mktemp("undisturbed")
    with keeping_two():
        fit(config(*paths), storage=str(storage), name="run", callbacks=[Recorder(storage / "log")])
    return storage / "run"


@contextmanager
def keeping_two() -> Iterator[None]:
    """Leave the checkpoints of a run as they are before its end, for a test that resumes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "delete_old_or_warn", lambda directory, retained: None)
        yield


class Recorder(ray.train.UserCallback):
    """Writes each report to a file, and kills its process at the first one of step `killed_at`."""

    def __init__(self, log: Path, killed_at: int | None = None) -> None:
        self.log, self.killed_at = log, killed_at

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(metrics[0]) + "\n")
        killed = self.log.with_name("killed")
        if metrics[0]["step"] == self.killed_at and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def reports(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def weights(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_workers_train_a_model_that_transformers_loads(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Their losses are those of one worker, since they train on the same rows in each step."""
    run = config(*paths, workers=Workers(count=2), micro_batch_size=1)
    callbacks = [Recorder(tmp_path / "log")]
    result = fit(run, storage=str(tmp_path), name="run", run={"arm": "otr"}, callbacks=callbacks)
    assert result.metrics["step"] == 6
    reported = reports(tmp_path / "log")
    for ours, alone in zip(reported, reports(undisturbed.parent / "log"), strict=True):
        assert ours["nll"] == pytest.approx(alone["nll"], rel=1e-4)
    assert reported[0]["note"] == "ddp on 2 workers"
    assert 0 < result.metrics["val_nll"] < 10
    rejected = {n: v for n, v in result.metrics.items() if n.startswith("rejected/")}
    assert rejected == {"rejected/broken": 1}
    directory = tmp_path / "run" / "step-000006"
    assert result.checkpoint.path == str(directory)
    assert json.loads((directory / "run.json").read_text()) == {"arm": "otr"}
    assert load_checkpoint(directory)["step"] == 6
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == ["step-000006"]
    assert not torch.equal(weights(directory), weights(paths[0]))
    assert AutoTokenizer.from_pretrained(directory).chat_template
    [sample] = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(sample)["cause"] == "broken"


def test_with_fewer_workers_than_wanted_each_step_has_the_same_rows(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """The cluster has 4 CPUs, so that one worker with 3 fits."""
    run = config(*paths, workers=Workers(2, cpus=3, min_count=1), micro_batch_size=1)
    result = fit(run, storage=str(tmp_path), name="run", callbacks=[Recorder(tmp_path / "log")])
    assert result.metrics["step"] == 6
    reported = reports(tmp_path / "log")
    assert reported[0]["note"] == "single on 1 worker"
    for ours, alone in zip(reported, reports(undisturbed.parent / "log"), strict=True):
        assert ours["nll"] == pytest.approx(alone["nll"], rel=1e-4)
    assert load_checkpoint(tmp_path / "run" / "step-000006")["world"] == 1


def test_the_best_checkpoint_and_the_last_of_a_finished_run_stay(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Validation wants other answers than training, so its NLL rises with every step."""
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"{i} + 1?", "completion": "qqqqqqqq"} for i in range(20)]
    other.write_text("\n".join(map(json.dumps, rows)))
    run = config(*paths, optim=OptimConfig(lr=1e-2, warmup_steps=2), max_steps=10, eval_interval=2)
    run = replace(run, objective=Objective("sft"))
    run = replace(run, data=replace(run.data, validation=(str(other),)))
    fit(run, storage=str(tmp_path), name="run", callbacks=[Recorder(tmp_path / "log")])
    measured = {r["step"]: r["val_nll"] for r in reports(tmp_path / "log") if "val_nll" in r}
    best = min(measured, key=lambda step: measured[step])
    assert best < 10, "the best one is the last"
    left = {int(path.name[5:]) for path in (tmp_path / "run").glob("step-*")}
    assert left == {best, 10}
    assert checkpoint_store.best_checkpoint(str(tmp_path / "run")) == f"step-{best:06d}"


def test_a_run_ends_early_and_counts_as_finished(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """Also when it is started again."""
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"{i} + 1?", "completion": "qqqqqqqq"} for i in range(20)]
    other.write_text("\n".join(map(json.dumps, rows)))
    optim = OptimConfig(lr=1e-2, warmup_steps=2, optimizer="muon", schedule="constant")
    run = config(*paths, optim=optim, max_steps=30, eval_interval=2, freeze=("lm_head.*",))
    run = replace(run, objective=Objective("sft"), save_dtype="bfloat16")
    run = replace(run, data=replace(run.data, validation=(str(other),)), patience=2)
    log = tmp_path / "log"
    result = fit(run, storage=str(tmp_path), name="run", callbacks=[Recorder(log)])
    reported = reports(log)
    measured = {r["step"]: r["val_nll"] for r in reported if "val_nll" in r}
    end = min(measured, key=lambda step: measured[step]) + 4
    assert result.metrics["step"] == end < 30 and result.metrics["ended_early"] == 1
    assert "no lower val_nll in 2 evaluations" in reported[-1]["note"]
    last = tmp_path / "run" / f"step-{end:06d}"
    assert result.checkpoint.path == str(last)
    saved, base = (load_file(where / "model.safetensors") for where in (last, paths[0]))
    assert torch.equal(
        saved["model.embed_tokens.weight"], base["model.embed_tokens.weight"].bfloat16()
    )
    again = fit(run, storage=str(tmp_path), name="run")
    assert again.metrics["step"] == end and again.metrics["ended_early"] == 1


def test_a_run_restarts_after_it_lost_its_controller(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    callback = Recorder(tmp_path / "log", killed_at=4)
    result = fit(config(*paths), storage=str(tmp_path), name="run", callbacks=[callback])
    assert result.metrics["step"] == 6
    first, second = (report for report in reports(tmp_path / "log") if "note" in report)
    assert "restart" not in first and "resumes from step" in second["note"]
    assert second["restarts"] == 1
    lost = "restarted, because the process that controls the workers was lost"
    assert second["restart"].startswith(lost)
    assert f"goes on after step {second['step']}, saved " in second["restart"]
    assert "; the last report was of step" in second["restart"]
    assert torch.equal(
        weights(tmp_path / "run" / "step-000006"), weights(undisturbed / "step-000006")
    )


def test_a_damaged_checkpoint_is_set_aside(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """The run resumes from the one before, whether a bit, a file's end or a file is damaged."""
    for number, damage in enumerate((flip, cut, remove)):
        storage = tmp_path / str(number)
        shutil.copytree(undisturbed, storage / "run")
        shutil.rmtree(storage / "run" / "step-000006")
        shutil.copytree(storage / "run" / "step-000004", storage / "run" / "step-000006")
        damaged_file = damage(storage / "run" / "step-000006")
        log = storage / "log"
        fit(config(*paths), storage=str(storage), name="run", callbacks=[Recorder(log)])
        note = reports(log)[0]["note"]
        assert damaged_file in note and "resumes from step 4" in note
        assert (storage / "run" / "damaged-step-000006").is_dir()
        final = weights(storage / "run" / "step-000006")
        assert torch.equal(final, weights(undisturbed / "step-000006"))


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


def test_a_run_resumes_with_more_workers_but_not_with_other_settings(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "step-000006")
    changed = config(*paths, objective=Objective("sft"), seed=1)
    with pytest.raises(ValueError, match=r"objective.name was 'otr', is 'sft'; seed was 0, is 1"):
        fit(changed, storage=str(tmp_path), name="run")
    (tmp_path / "other").mkdir()
    other = make_tiny_model(tmp_path / "other" / "model", seed=1)  # the same name, other weights
    with pytest.raises(ValueError, match=r"settings \(model.weights was .*model.safetensors"):
        fit(config(other, paths[1]), storage=str(tmp_path), name="run")
    (edited := tmp_path / "rows.jsonl").write_text(paths[1].read_text().replace("7 + 1", "7 + 2"))
    with pytest.raises(ValueError, match=r"settings \(data.files was .*rows.jsonl"):
        fit(config(paths[0], edited), storage=str(tmp_path), name="run")
    two = config(*paths, workers=Workers(count=2), micro_batch_size=1)
    fit(two, storage=str(tmp_path), name="run", callbacks=[Recorder(tmp_path / "log")])
    reported = reports(tmp_path / "log")
    assert "had 1 workers, has 2: the same rows in each step" in reported[0]["note"]
    assert reported[-1]["nll"] == pytest.approx(
        reports(undisturbed.parent / "log")[-1]["nll"], rel=1e-4
    )


def test_a_finished_run_becomes_longer_but_not_from_rounded_weights(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "step-000004")  # a finished run does not keep it
    log = tmp_path / "log"
    longer = config(*paths, max_steps=8, log_interval=1, save_dtype="bfloat16")
    fit(longer, storage=str(tmp_path), name="run", callbacks=[Recorder(log)])
    resumed, *added = reports(log)
    assert resumed["step"] == 6 and "resumes from step 6" in resumed["note"]
    assert "has 8 steps instead of 6: from here on, the learning rate follows" in resumed["note"]
    schedule = [(step + 1, learning_rate(longer.optim, step, 8)) for step in (6, 7)]
    assert [(report["step"], report["lr"]) for report in added] == schedule
    last = tmp_path / "run" / "step-000008"
    assert AutoModelForCausalLM.from_pretrained(last).dtype == torch.float32  # that of training
    assert load_file(last / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"rounded .* start another run from it with --model"):
        fit(replace(longer, max_steps=9), storage=str(tmp_path), name="run")
    with pytest.raises(ValueError, match=r"\(max_steps was 8, is 6\)"):
        fit(config(*paths), storage=str(tmp_path), name="run")


def test_an_error_in_a_worker_ends_the_run_at_once_with_its_reason(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Mock(wraps=driver._trainer)
    monkeypatch.setattr(driver, "_trainer", attempts)
    run = config(*paths)
    broken = replace(run, model=replace(run.model, path=str(tmp_path / "model")))
    with pytest.raises(ValueError, match=rf"^no tokenizer at '{tmp_path}/model'"):
        fit(broken, storage=str(tmp_path), name="run")
    assert attempts.call_count == 0, "the corpus is packed before any worker starts"
    long = replace(run, data=replace(run.data, sequence_length=4096))
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(long, storage=str(tmp_path), name="long")
    assert "has 1024 positions: give --train.data.sequence-length 1024" in worker_error(error.value)
    assert attempts.call_count == 1


def test_a_checkpoint_that_fails_its_check_is_kept_and_the_run_is_not_retried(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_wrong_probe(job: Any) -> None:  # runs in the worker
        from otr.loop import loop
        from otr.training.worker import train_loop

        original = loop._probe

        def probe(*arguments: Any) -> Any:
            measured = original(*arguments)
            return replace(measured, nll_T=measured.nll_T + 1)

        loop._probe = probe
        train_loop(job)

    attempts = Mock(wraps=driver._trainer)
    monkeypatch.setattr(driver, "_trainer", attempts)
    monkeypatch.setattr(driver, "train_loop", with_wrong_probe)
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(config(*paths), storage=str(tmp_path), name="run")
    kept = tmp_path / "run" / "unverified-step-000006"
    line = worker_error(error.value)
    assert line.startswith(
        f"the last checkpoint is kept as {kept}, but not trusted: its NLL differs"
    )
    assert attempts.call_count == 1
    check_checkpoint(kept)
    assert weights(kept).isfinite().all()
    assert checkpoint_store.list_checkpoints(str(kept.parent))[-1] == "step-000004"
    assert checkpoint_store.recover(str(kept.parent)) == ("step-000004", [])


def test_rows_of_a_step_that_overflows_are_saved(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """After a step at this learning rate the gradient is not finite, for no single row's fault."""
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


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_a_sharded_run_resumes_bit_for_bit(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path], rank: int
) -> None:
    run = config(
        *paths, workers=Workers(2), memory=MemoryConfig("fsdp"), lora=LoraConfig(rank=rank)
    )
    with keeping_two():
        fit(run, storage=str(tmp_path), name="undisturbed")
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "step-000006")
    fit(run, storage=str(tmp_path), name="resumed")
    bits = [
        {
            path.name: path.read_bytes()
            for path in (tmp_path / name).glob("step-000006/*.safetensors")
        }
        for name in ("undisturbed", "resumed")
    ]
    assert len(bits[0]) == (1 if rank else 2), "each rank writes its part of the whole weights"
    assert bits[0] == bits[1]


def test_a_stop_file_saves_and_ends_the_run(
    undisturbed: Path, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    stop = tmp_path / "stop"
    stop.touch()
    run = config(*paths, checkpoint_interval=0)
    result = fit(run, storage=str(tmp_path), name="run", stop_file=str(stop))
    assert result.metrics["step"] == 1
    stop.unlink()
    result = fit(run, storage=str(tmp_path), name="run", stop_file=str(stop))
    assert result.metrics["step"] == 6
    assert torch.equal(
        weights(tmp_path / "run" / "step-000006"), weights(undisturbed / "step-000006")
    )


def test_a_run_of_adapters_resumes_bit_for_bit(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    run = config(*paths, lora=LoraConfig(rank=4))
    with keeping_two():
        fit(run, storage=str(tmp_path), name="undisturbed")
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "step-000006")
    fit(run, storage=str(tmp_path), name="resumed")
    one, two = ((tmp_path / n / "step-000006") for n in ("undisturbed", "resumed"))
    assert (one / "adapter_model.safetensors").is_file()
    assert not (one / "model.safetensors").exists()
    bits = [(d / "adapter_model.safetensors").read_bytes() for d in (one, two)]
    assert bits[0] == bits[1]


def test_what_the_model_predicted_before_training_is_computed_once_for_all_runs(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """By two workers, whose first step has ratios of 1; a run of adapters finds it."""
    run = config(
        *paths,
        objective=Objective("psft"),
        kl_weight=0.1,
        optim=OptimConfig(lr=0.01),
        log_interval=1,
        max_steps=2,
        eval_interval=2,
    )
    two = replace(run, workers=Workers(count=2), micro_batch_size=1)
    adapters = replace(run, lora=LoraConfig(rank=4), seed=1)
    for name, each in (("two", two), ("adapters", adapters)):
        fit(each, storage=str(tmp_path), name=name, callbacks=[Recorder(tmp_path / f"{name}.log")])
        log = reports(tmp_path / f"{name}.log")
        computed = ["log-probabilities before training" in each.get("note", "") for each in log]
        assert computed == ([True] if name == "two" else []) + [False, False]
        first, last = log[-2:]
        assert first["loss"] == pytest.approx(-1, abs=1e-4)
        assert first["kl_to_base"] == pytest.approx(0, abs=1e-5) and last["val_kl_to_base"] > 1e-5
    [stored] = tmp_path.glob("packed/*/statistic-start_*.npy")
    assert stored.name.endswith("-00000.npy")
