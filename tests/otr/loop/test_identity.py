"""A run resumes only with the settings and data it started with."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from otr import DataConfig, ModelConfig, Objective, TrainConfig, Workers
from otr.loop.identity import check_same, identity, sampled_digest

CONFIG = TrainConfig(ModelConfig("hub/name"), DataConfig(("data.jsonl",)), global_batch_size=64)
CORPUS = [["data.jsonl", 100, "digest"]]


def stored(config: TrainConfig) -> dict:
    return json.loads(json.dumps(identity(config, CORPUS)))


def test_an_identity_equals_itself_after_json() -> None:
    check_same(stored(CONFIG), identity(CONFIG, CORPUS), "run")


def test_settings_that_do_not_change_the_outcome_may_change() -> None:
    data = replace(CONFIG.data, validation=("held-out.jsonl",), paths=("moved/data.jsonl",))
    changed = replace(CONFIG, workers=Workers(2), micro_batch_size=8, log_interval=1, data=data)
    changed = replace(changed, checkpoint_minutes=0, save_dtype="bfloat16")
    check_same(stored(CONFIG), identity(changed, CORPUS), "run")


def test_a_run_may_become_longer_but_not_shorter() -> None:
    longer = replace(CONFIG, max_steps=CONFIG.max_steps + 1)
    check_same(stored(CONFIG), identity(longer, CORPUS), "run")
    with pytest.raises(ValueError, match=r"\(max_steps was 101, is 100\)"):
        check_same(stored(longer), identity(CONFIG, CORPUS), "run")


def test_other_settings_are_named_with_both_values() -> None:
    changed = replace(CONFIG, global_batch_size=32)
    message = r"run holds a run with other settings \(global_batch_size was 64, is 32\)"
    with pytest.raises(ValueError, match=message):
        check_same(stored(CONFIG), identity(changed, CORPUS), "run")
    with pytest.raises(ValueError, match=r"data.files was .*100.*, is .*101"):
        check_same(stored(CONFIG), identity(CONFIG, [["data.jsonl", 101, "digest"]]), "run")


def test_a_run_that_took_the_data_in_another_order_is_refused() -> None:
    before = {key: value for key, value in stored(CONFIG).items() if key != "data.order"}
    with pytest.raises(ValueError, match=r"another order: go on .* --model runs/a/step-\.\.\.$"):
        check_same(before, identity(CONFIG, CORPUS), "runs/a")


def test_a_run_from_before_an_option_existed_did_what_its_default_does() -> None:
    new = ("optim.schedule", "freeze", "patience")
    before = {key: value for key, value in stored(CONFIG).items() if key not in new}
    check_same(before, identity(CONFIG, CORPUS), "run")
    changed = replace(CONFIG, freeze=("model.norm.*",))
    with pytest.raises(ValueError, match=r"\(freeze was \[\], is \['model.norm.\*'\]\)"):
        check_same(before, identity(changed, CORPUS), "run")


def test_a_sampled_digest_sees_size_start_and_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8
    digests = set()
    for changed in (content, content + b"x", b"x" + content[1:], content[:-1] + b"x"):
        (tmp_path / "file").write_bytes(changed)
        digests.add(sampled_digest(tmp_path / "file", 64))
    assert len(digests) == 4


def test_a_run_that_was_stored_with_the_settings_of_another_objective_resumes() -> None:
    """Every objective was stored with the settings of otr, which had no effect."""
    sft = replace(CONFIG, objective=Objective("sft"))
    before = stored(sft)
    for key in ("label_smoothing", "z_loss"):
        del before[f"objective.{key}"]
    of_otr = asdict(Objective(num_samples=16))
    before |= {f"objective.{key}": value for key, value in of_otr.items() if key != "name"}
    check_same(before, identity(sft, CORPUS), "run")
    smoothed = replace(CONFIG, objective=Objective("sft", label_smoothing=0.1))
    with pytest.raises(ValueError, match=r"objective.label_smoothing was 0.0, is 0.1"):
        check_same(before, identity(smoothed, CORPUS), "run")
    with pytest.raises(ValueError, match=r"\(objective.name was 'sft', is 'dft'\)"):
        check_same(stored(sft), identity(replace(CONFIG, objective=Objective("dft")), CORPUS), "r")
