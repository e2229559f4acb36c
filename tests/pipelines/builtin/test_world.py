"""Splits of the built-in world do not overlap, and its answers are correct."""

import json
import re
from pathlib import Path

import pytest

from pipelines.builtin import corpus
from pipelines.builtin.world import SKILLS, SPLITS, items

COUNT = 300
PARTS = ("train", "validation", "heldout", "harder")


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_prompt(skill: str) -> None:
    prompts = [{item.prompt for item in items(skill, split, COUNT)} for split in SPLITS]
    assert all(len(p) == COUNT for p in prompts)
    assert len(set.union(*prompts)) == COUNT * len(SPLITS)


def test_splits_do_not_overlap_for_different_seeds() -> None:
    train = {i.prompt for s in SKILLS for i in items(s, "train", COUNT, seed=1)}
    held = {i.prompt for s in SKILLS for i in items(s, "heldout", COUNT, seed=2)}
    harder = {i.prompt for s in SKILLS for i in items(s, "harder", COUNT, seed=3)}
    assert not train & held and not harder & (train | held)


def test_the_same_seed_gives_the_same_items() -> None:
    assert items("chain", "train", 20, seed=5) == items("chain", "train", 20, seed=5)
    assert items("chain", "train", 20, seed=5) != items("chain", "train", 20, seed=6)


def test_harder_is_longer() -> None:
    def steps(split: str) -> set[int]:
        return {item.completion.count("=") for item in items("chain", split, COUNT)}

    assert steps("train") == steps("heldout") == {2, 3} and steps("harder") == {4, 5}


@pytest.mark.parametrize("split", SPLITS)
def test_chains_are_computed_correctly(split: str) -> None:
    for item in items("chain", split, COUNT):
        for line in item.completion.split("\n")[:-1]:
            left, right = line.split(" = ")
            assert eval(left) == int(right)
        assert item.completion.endswith(f"{right}\n\\boxed{{{item.answer}}}")
        assert item.answer == right


def test_a_hard_function_is_wrong_without_its_exception() -> None:
    for item in items("function", "harder", COUNT):
        exec(item.completion + "\n" + item.tests, {})
        without = re.sub(r" and x != \d+", "", item.completion)
        assert without != item.completion
        with pytest.raises(AssertionError):
            exec(without + "\n" + item.tests, {})


def test_functions_pass_their_own_tests_and_a_stub_does_not() -> None:
    stubs_passed = 0
    for item in items("function", "heldout", 60):
        exec(item.completion + "\n" + item.tests, {})
        name = item.completion.split("(")[0].removeprefix("def ")
        try:
            exec(f"def {name}(xs): return 0\n" + item.tests, {})
            stubs_passed += 1
        except AssertionError:
            pass
    assert stubs_passed == 0


def test_every_domain_has_skills() -> None:
    assert {s.domain for s in SKILLS.values()} == {"mathematics", "code", "reasoning"}


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'poetry'"):
        items("poetry", "train", 1)
    with pytest.raises(ValueError, match="'validation'"):
        items("chain", "validation", 1)
    with pytest.raises(ValueError, match="no 50000 different"):
        items("sum", "train", 50_000)


def prompts_of(name: str, directory: Path) -> list[str]:
    path = corpus.resolve_path(corpus.PREFIX + name, directory)
    return [json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()]


OF_SKILLS = {skill: [f"{skill}-{part}" for part in PARTS] for skill in SKILLS}


def test_files_share_no_prompt_except_those_that_ask_the_data(tmp_path: Path) -> None:
    """Two benchmarks ask prompts of the training and of the validation data."""
    names = {*corpus._FILES} - {name for own in OF_SKILLS.values() for name in own}
    prompts = {name: prompts_of(name, tmp_path) for name in names}
    assert {*prompts.pop("target-train")} < {*prompts["train"]}
    assert {*prompts.pop("validation-questions")} == {*prompts["validation"]}
    every = [prompt for each in prompts.values() for prompt in each]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("skill", SKILLS)
def test_files_of_a_skill_share_no_prompt(tmp_path: Path, skill: str) -> None:
    every = [prompt for name in OF_SKILLS[skill] for prompt in prompts_of(name, tmp_path)]
    assert len(set(every)) == len(every) == 6000 + 108 + 200 + 200


@pytest.mark.parametrize("named", ["option", "variable"])
def test_gsm8k_is_split_into_training_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    folder = tmp_path / "published"
    (folder / "gsm8k").mkdir(parents=True)
    rows = [
        {"question": f"{n} + 0?", "answer": f"{n} + 0 = <<{n}+0={n}>>{n}\n#### {n}"}
        for n in range(300)
    ]
    (folder / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if named == "variable":
        monkeypatch.setenv("OTR_BENCHMARKS", str(folder))
    found = []
    for part in ("train", "validation"):
        option = str(folder) if named == "option" else ""
        path = corpus.resolve_path(f"builtin:gsm8k-{part}", tmp_path / "files", option)
        found.append([json.loads(line) for line in Path(path).read_text().splitlines()])
    assert [len(part) for part in found] == [44, 256]
    for n, example in enumerate([*found[0], *found[1]]):
        assert example["prompt"].startswith(f"{n} + 0?\nPlease reason")
        assert example["completion"] == f"{n} + 0 = {n}\nThe final answer is \\boxed{{{n}}}."


def test_gsm8k_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gsm8k/train.jsonl: set OTR_BENCHMARKS"):
        corpus.resolve_path("builtin:gsm8k-train", tmp_path, str(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_a_directory_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/in can't be written to .* give another --output"):
        corpus.resolve_path("builtin:train", tmp_path / "file" / "in")


def test_unknown_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no built-in file builtin:trian: did you mean 'builtin"):
        corpus.resolve_path("builtin:trian", tmp_path)
