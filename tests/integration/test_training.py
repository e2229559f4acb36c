"""The worker's batches, and a run under Ray Train from the corpus to a checkpoint that loads."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otr.checkpoint import load_checkpoint
from otr.config import DataConfig, ModelConfig, TrainConfig, Workers
from otr.training import driver, worker
from otr.training.corpus import Audit
from otr.training.driver import fit, worker_error
from tests.assets.tiny import make_tiny_model
from tests.numerics.runs import join_ranks


class Share:
    """Packed rows, numbered in their tokens, in blocks of four and one that is unusable."""

    def __init__(self, rows: int = 11, rejected: int = 0) -> None:
        self.rows, self.rejected = rows, rejected

    def iter_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        numbers = np.arange(1, self.rows + 1)
        for block in [*np.split(numbers, range(4, self.rows, 4)), np.zeros(1, int)]:
            ids = np.repeat(block[:, None], 3, axis=1).astype(np.int32)
            audit = {"rows": 500, "rejected": {"broken": self.rejected}, "samples": []}
            if self.rejected:
                audit["samples"] = [{"cause": "broken", "detail": "why", "row": "{"}]
            yield {
                "input_ids": ids,
                "loss_mask": ids > 0,
                "segment_ids": ids,
                "audit": np.array([json.dumps(audit)] + [""] * (len(ids) - 1), dtype=object),
            }


def config(model: Path, data: Path, **changes: Any) -> TrainConfig:
    data_config = DataConfig((str(data),), row_length=64, validation=(str(data),))
    base = TrainConfig(
        ModelConfig(str(model)),
        data_config,
        max_steps=6,
        step_rows=4,
        micro_rows=2,
        log_every=2,
        eval_every=6,
        save_every=2,
    )
    return replace(base, **changes)


def numbers(share: Share, run: TrainConfig, batches: int, audit: Audit | None = None) -> list[int]:
    stream = worker.micro_batches(share, run, audit or Audit(0.05))  # type: ignore[arg-type]
    some = list(itertools.islice(stream, batches))
    assert all(batch["input_ids"].shape == (run.micro_rows, 3) for batch in some)
    return [n for batch in some for n in batch["input_ids"][:, 0].tolist()]


def test_every_epoch_has_each_row_once_in_an_order_of_its_own() -> None:
    run = config(Path("model"), Path("data"))
    seen = numbers(Share(), run, 22)
    epochs = [seen[start : start + 11] for start in (0, 11, 22, 33)]
    assert all(sorted(epoch) == list(range(1, 12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers(Share(), run, 22) == seen, "a resumed run must find the same rows again"
    assert numbers(Share(), replace(run, seed=1), 22) != seen


def test_a_corpus_smaller_than_a_batch_fills_one() -> None:
    run = config(Path("model"), Path("data"), step_rows=8, micro_rows=8)
    assert sorted(numbers(Share(rows=3), run, 3)) == sorted([1, 2, 3] * 8)


def test_no_usable_row_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(ValueError, match="no row for this worker"):
        numbers(Share(rows=0), config(Path("model"), Path("data")), 1)


def test_rejected_rows_are_counted_once() -> None:
    run, audit = config(Path("model"), Path("data")), Audit(0.05)
    numbers(Share(rejected=20), run, 2, audit)
    assert (audit.rows, audit.complete) == (500, False)
    numbers(Share(rejected=20), run, 30, audit := Audit(0.05))
    assert (audit.rows, audit.rejected, audit.complete) == (2000, {"broken": 80}, True)


def _audit_of_rank(rank: int, directory: Path) -> None:
    """Both read 1,000 rows; one in ten of rank 1's can't be used."""
    join_ranks(rank, directory)
    said = []
    for allowed in (0.06, 0.04):
        audit = Audit(allowed)
        bad = 100 * rank
        sample = {"cause": "broken", "detail": "why", "row": "{"}
        part = {"rows": 1000, "rejected": {"broken": bad}, "samples": [sample] if bad else []}
        audit.add([json.dumps(part)])
        audit.complete = rank == 0
        whole = worker.of_all_ranks(audit, torch.device("cpu"))
        assert (whole.rows, whole.rejected, whole.complete) == (2000, {"broken": 100}, False)
        try:
            whole.check()
        except ValueError as error:
            said.append(str(error))
    (directory / f"rank-{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


def test_the_share_of_rejected_rows_is_judged_over_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_audit_of_rank, (tmp_path,), nprocs=2)
    for rank, first in ((0, "another worker has it"), (1, "broken, why: {")):
        [said] = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert said.startswith("100 of 2000 rows can't be used (100 broken), allowed are 4%")
        assert said.endswith(first)


def test_a_report_counts_the_rejected_rows_or_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once there is enough to judge by: a batch of rows, or the whole corpus."""
    reports: list[dict[str, float]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **_: reports.append(metrics))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    audit = Audit(0.05)
    audit.add([json.dumps({"rows": 10, "rejected": {"empty": 1}, "samples": []})])
    worker._report(audit, {"step": 1}, None)
    assert reports[0].items() >= {"step": 1, "rejected/empty": 1}.items()
    audit.complete = True
    with pytest.raises(ValueError, match=r"1 of 10 rows can't be used \(1 empty\)"):
        worker._report(audit, {"step": 2}, None)
    assert len(reports) == 1


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("assets")
    rows = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(60)]
    lines = [json.dumps(row) for row in rows] + ["{broken"]
    (directory / "rows.jsonl").write_text("\n".join(lines))
    return make_tiny_model(directory / "model"), directory / "rows.jsonl"


@pytest.mark.integration
def test_two_workers_train_a_model_that_transformers_loads(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    run = config(*paths, workers=Workers(count=2))
    result = fit(run, storage=str(tmp_path), name="run", run={"arm": "otr"})
    assert result.metrics["step"] == 6
    assert 0 < result.metrics["val_nll"] < 10
    rejected = {n: v for n, v in result.metrics.items() if n.startswith("rejected/")}
    assert rejected == {"rejected/broken": 1}, "of all ranks, and of one epoch"
    directory = tmp_path / "run" / "step-000006"
    assert result.checkpoint.path == str(directory)
    assert json.loads((directory / "run.json").read_text()) == {"arm": "otr"}
    assert load_checkpoint(directory)["step"] == 6
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == ["step-000006"]
    trained = AutoModelForCausalLM.from_pretrained(directory).get_output_embeddings().weight
    before = AutoModelForCausalLM.from_pretrained(paths[0]).get_output_embeddings().weight
    assert not torch.equal(trained, before)
    assert AutoTokenizer.from_pretrained(directory).chat_template
    [sample] = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(sample)["cause"] == "broken"


class Built(Exception):
    """Carries what a trainer would have been built of."""


@pytest.mark.integration
def test_each_of_two_workers_finds_its_rows_in_the_same_order_again(
    ray_cluster: None,
    tmp_path: Path,
    paths: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file, count in enumerate((2000, 1, 200, 1)):  # those that are ready first come last
        rows = [{"prompt": f"{file}, {i}", "completion": "1"} for i in range(count)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def build(*_: Any, **built: Any) -> None:
        raise Built(built)

    monkeypatch.setattr(driver, "TorchTrainer", build)
    with pytest.raises(Built) as caught:
        run = config(paths[0], tmp_path, workers=Workers(count=2))
        fit(run, storage=str(tmp_path), name="run")
    built = caught.value.args[0]
    shards = built["dataset_config"].configure(built["datasets"], 2, None, None)
    with ThreadPoolExecutor(2) as pool:
        first, again = (list(pool.map(_ids, shards)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert len(one) > 100
        np.testing.assert_array_equal(one, two)


def _ids(shard: dict[str, Any]) -> np.ndarray:
    batches = shard["train"].iter_batches(batch_size=100)
    return np.concatenate([batch["input_ids"] for batch in batches])


@pytest.mark.integration
def test_the_same_name_again_goes_on_and_an_error_says_why(
    ray_cluster: None, tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    """A run that breaks off at step 4 and goes on ends with the weights of one that does not."""
    run = config(*paths)
    whole = fit(run, storage=str(tmp_path), name="whole")
    broken = replace(run, model=replace(run.model, path=str(tmp_path / "model")))
    with pytest.raises(ray.train.TrainingFailedError) as error:
        fit(broken, storage=str(tmp_path), name="parts")
    assert worker_error(error.value).startswith(f"no tokenizer at '{tmp_path}/model'")
    with pytest.raises(ray.train.TrainingFailedError, match="the power failed"):
        fit(run, storage=str(tmp_path), name="parts", callbacks=[PowerCut()])
    assert (tmp_path / "parts" / "step-000004").is_dir()
    # As of a host that died while Ray copied into it; the worker may have gone on to it or not.
    cut_off = tmp_path / "parts" / "step-000006"
    cut_off.mkdir(exist_ok=True)
    (cut_off / "trainer_state.pt").write_bytes(b"half")
    parts = fit(run, storage=str(tmp_path), name="parts")
    assert parts.metrics["step"] == 6
    weights = [torch.load(Path(r.checkpoint.path) / "trainer_state.pt") for r in (whole, parts)]
    moments = [w["optimizer"]["state"][0]["exp_avg"] for w in weights]
    torch.testing.assert_close(moments[0], moments[1], rtol=0, atol=0)


class PowerCut(ray.train.UserCallback):
    """Ends the run once the checkpoint of step 4 is there."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        if metrics[0]["step"] == 4:
            raise RuntimeError("the power failed")
