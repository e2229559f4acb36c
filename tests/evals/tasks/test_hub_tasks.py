"""Benchmarks from the Hugging Face hub, through small local copies of its data sets."""

import json
import shutil

import pytest

from evals import tasks
from evals.grading import grade_all
from tests.assets.benchmarks import write as write_hub
from tests.evals.tasks.test_tasks import SIZES, answered


@pytest.fixture
def hub(tmp_path, monkeypatch) -> None:
    """Write data sets with three items each where `datasets` finds them instead of the hub."""
    datasets = pytest.importorskip("datasets")
    write_hub(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(tasks.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("hub")
def test_without_a_folder_items_come_from_the_hub() -> None:
    for name in SIZES:
        for style in ("", "-base") if name in tasks.base_names() and name != "bbh" else ("",):
            benchmark = tasks.load(name + style)
            assert len(benchmark.items) == {"bbeh_mini": 1, "mmlu_stem": 2}.get(name, 3)
            assert all(bool(item.completion) == bool(style) for item in benchmark.items if style)
            right = [(item, answered(benchmark, item)) for item in benchmark.items]
            if not style:
                assert grade_all(benchmark, right) == [True] * len(right), name
                assert not any(grade_all(benchmark, [(item, "") for item, _ in right]))
    arc = tasks.load("arc_challenge").items[0]  # the third option, with the label "3"
    assert (arc.answer, arc.prompt[-4:]) == ("C", "D. z") and "\nC. y\n" in arc.prompt
    with pytest.raises(ValueError, match=r"no bbh/cot_prompts/cot_prompts.json in the Hugging"):
        tasks.load("bbh-base")


@pytest.mark.usefixtures("hub")
def test_with_a_folder_only_sets_published_on_the_hub_alone_come_from_there(tmp_path) -> None:
    assert len(tasks.load("supergpqa", tmp_path / "empty").items) == 3
    with pytest.raises(ValueError, match="no file"):
        tasks.load("gsm8k", tmp_path / "empty")
    file = tmp_path / "folder/supergpqa/SuperGPQA-all.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text((tmp_path / "m-a-p/SuperGPQA/default/train.jsonl").read_text().split("\n")[0])
    assert len(tasks.load("supergpqa", tmp_path / "folder").items) == 1


@pytest.mark.usefixtures("hub")
def test_malformed_data_of_the_hub_is_an_error_with_row_and_field(tmp_path) -> None:
    (tmp_path / "m-a-p/SuperGPQA/default/train.jsonl").write_text('{"uuid": "a", "options": []}')
    with pytest.raises(ValueError, match=r'SuperGPQA@4430d44 \(train\), row 1: field "question"'):
        tasks.load("supergpqa")
    shutil.rmtree(tmp_path / "m-a-p")
    with pytest.raises(ValueError, match=r"cannot load .* from the Hugging Face hub .*; give a"):
        tasks.load("supergpqa")


@pytest.mark.usefixtures("hub")
def test_bbeh_from_files_is_a_harmonic_mean_over_kinds(tmp_path) -> None:
    folder = tmp_path / "files/bbeh"
    folder.mkdir(parents=True)
    for kind, targets in (("bbeh_a", ["1", "2"]), ("bbeh_b", ["[3]"])):
        rows = [{"input": "q", "target": target} for target in targets]
        (folder / f"{kind}.json").write_text(json.dumps({"canary": "c", "examples": rows}))
    benchmark = tasks.load("bbeh", tmp_path / "files")
    assert benchmark.average == "harmonic over subjects"
    assert [item.meta["subject"] for item in benchmark.items] == ["bbeh_a", "bbeh_a", "bbeh_b"]
