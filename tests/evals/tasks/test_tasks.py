"""Benchmarks by name: the published data, their graders, and error messages."""

import contextlib
import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from evals import tasks
from evals.benchmark import Decoding
from evals.grading import grade_all
from evals.tasks import _plus, _plus_check, gsm8k, mbpp

SIZES = {
    **{"gsm8k": 1319, "math500": 500, "olympiadbench": 675, "minerva_math": 272},
    **{"amc23": 40, "aime24": 30, "aime25": 30},
    **{"humaneval": 164, "humaneval_plus": 164, "mbpp": 500, "mbpp_plus": 378},
    **{"mmlu": 14042, "mmlu_stem": 3018, "mmlu_pro": 12032, "supergpqa": 26529},
    **{"arc_challenge": 1172},
    **{"bbh": 6511, "bbeh": 4520, "bbeh_mini": 460},
}
CLOSING = {"supergpqa": "Answer: %s", "bbeh": "The answer is: %s", "bbeh_mini": "The answer is: %s"}
WORKED_EXAMPLES = {  # number, and the end of one of them
    "gsm8k": (5, "#### 72\n\n"),
    "math500": (4, "The final answer is $24$. I hope it is correct.\n\n"),
    "mbpp": (3, "return largest_nums\n[DONE]\n\n"),
    "mmlu": (5, "\nAnswer: B\n\n"),
    "mmlu_pro": (5, "The answer is (D).\n\n"),
    "bbh": (3, "So the answer is False.\n\n"),
}


@pytest.fixture(scope="module", params=SIZES)
def benchmark(request):
    """Return a built-in benchmark with its published items."""
    folder = os.environ.get(tasks.FOLDER_VARIABLE)
    if not folder:
        pytest.skip(f"{tasks.FOLDER_VARIABLE} does not point to the published files")
    path = Path(folder) / tasks._module(request.param).SOURCE.file
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return tasks.load(request.param, folder)


def answered(benchmark, item) -> str:
    """Return the reference answer in the form in which a model would give it."""
    if benchmark.domain == "mathematics":
        return f"First 1, then \\boxed{{{item.answer}}}."
    if benchmark.domain == "code":
        return f"```python\n{item.meta.get('code_prompt', '')}{item.answer}\n```"
    return "Think.\n" + CLOSING.get(benchmark.name, "So the answer is %s.") % item.answer


def sample_items(benchmark, count: int) -> tuple:
    """Return all items if grading is cheap, and about `count` of them if it starts processes."""
    cheap = benchmark.domain == "reasoning"
    return benchmark.items if cheap else benchmark.items[:: len(benchmark.items) // count + 1]


def test_sizes_has_every_benchmark() -> None:
    assert set(SIZES) == set(tasks.names())


def test_published_items_are_complete(benchmark) -> None:
    assert len(benchmark.items) == SIZES[benchmark.name]
    assert all(item.prompt.strip() and item.answer.strip() for item in benchmark.items)
    assert all(bool(item.tests) == (benchmark.domain == "code") for item in benchmark.items)
    based = benchmark.name in tasks.base_names()
    assert all(bool(item.completion) == based for item in benchmark.items)


def test_published_answers_are_right_and_empty_ones_wrong(benchmark) -> None:
    items = sample_items(benchmark, 12)
    right = [(item, answered(benchmark, item)) for item in items]
    verdicts = grade_all(benchmark, right)
    assert [pair for pair, verdict in zip(right, verdicts, strict=True) if not verdict] == []
    assert not any(grade_all(benchmark, [(item, "") for item in items]))


def test_answers_of_other_items_are_wrong(benchmark) -> None:
    items = sample_items(benchmark, 12)
    shifted = [
        (item, answered(benchmark, other))
        for item, other in zip(items, (*items[1:], items[0]), strict=True)
        if item.answer != other.answer
    ]
    assert sum(grade_all(benchmark, shifted)) <= len(shifted) * 0.05


def test_spellings_of_the_same_answer_are_one_vote(benchmark) -> None:
    assert (benchmark.extract is None) == (benchmark.domain == "code")
    for item in sample_items(benchmark, 12) if benchmark.extract else ():
        vote = benchmark.extract(item, answered(benchmark, item))
        assert vote and vote == benchmark.extract(item, "1 or 2? " + answered(benchmark, item))
        assert benchmark.extract(item, "") == ""


def test_max_items_spreads_over_all_items(benchmark) -> None:
    thin = tasks.load(benchmark.name, max_items=27)
    assert len(thin.items) == 27
    assert thin.items[0] == benchmark.items[0]
    index = {item.id: position for position, item in enumerate(benchmark.items)}
    positions = [index[item.id] for item in thin.items]
    gaps = [b - a for a, b in itertools.pairwise([*positions, len(benchmark.items)])]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", WORKED_EXAMPLES)
def test_a_base_model_sees_worked_examples(name, benchmark_dir) -> None:
    """Only the last question has no answer, and stop strings end the text after the answer."""
    benchmark = tasks.load(f"{name}-base", benchmark_dir, max_items=3)
    assert (benchmark.name, benchmark.style) == (f"{name}-base", "completion")
    count, ending = WORKED_EXAMPLES[name]
    marks = {"gsm8k": "Question:", "math500": "Problem:", "mbpp": "[BEGIN]", "bbh": "Q: "}
    for item in benchmark.items:
        assert item.completion.count(marks.get(name, "\nAnswer:")) == count + 1
        assert item.completion.rstrip().endswith((":", "[BEGIN]", "step by step."))
    assert ending in benchmark.items[0].completion
    assert benchmark.decoding.stop


def test_base_rules_expect_the_form_of_the_worked_examples(benchmark_dir) -> None:
    for name, right, wrong in (
        ("gsm8k", " It is so.\n#### %s", " It is %s."),
        ("mmlu", " %s", " It is %s"),
        ("mmlu_pro", " So the answer is (%s).", " So"),
        ("bbh", "So the answer is %s.", "So the answer is: %s"),
        ("math500", "Final Answer: The final answer is $%s$. I hope it is correct.", "So"),
    ):
        benchmark = tasks.load(f"{name}-base", benchmark_dir, max_items=9)
        for item in benchmark.items:
            assert benchmark.grade(item, right % item.answer)
            assert not benchmark.grade(item, wrong.replace("%s", item.answer))


def test_training_examples_of_gsm8k_have_the_form_that_is_graded(benchmark_dir) -> None:
    benchmark = tasks.load("gsm8k", benchmark_dir)
    examples = gsm8k.training_examples(benchmark_dir)
    assert len(examples) == 7473 and examples[0]["completion"].endswith("is \\boxed{72}.")
    assert not {item.prompt for item in benchmark.items} & {each["prompt"] for each in examples}
    assert not any("<<" in each["completion"] or "####" in each["completion"] for each in examples)
    numbers = [row.number for row in gsm8k._rows(gsm8k.SHOTS, benchmark_dir)]
    for number, each in list(zip(numbers, examples, strict=True))[::500]:
        item = dataclasses.replace(benchmark.items[0], answer=number)
        assert benchmark.grade(item, each["completion"])


def test_training_examples_of_mbpp_have_the_form_that_is_graded(benchmark_dir) -> None:
    """The reference programs of MBPP are right; graded as answers, they pass their own tests."""
    benchmark = tasks.load("mbpp", benchmark_dir)
    words = benchmark.items[0].prompt.split()
    for split, count in (("train", 374), ("validation", 90)):
        examples = mbpp.examples(split, benchmark_dir)
        assert len(examples) == count
        assert not {i.prompt for i in benchmark.items} & {each["prompt"] for each in examples}
        for each in examples[::40]:
            tests = [line for line in each["prompt"].splitlines() if line.startswith("assert")]
            assert len(tests) == 3 and each["prompt"].split()[:11] == words[:11]
            item = dataclasses.replace(benchmark.items[0], tests="\n".join(tests))
            assert benchmark.grade(item, each["completion"])


def test_faults_of_the_published_files_are_corrected(benchmark_dir) -> None:
    aime = {item.answer for item in tasks.load("aime24", benchmark_dir).items}
    assert {"25", "73", "23"} <= aime and not any(answer.startswith("0") for answer in aime)
    assert "336" in {item.answer for item in tasks.load("aime25", benchmark_dir).items}
    pro = {item.id: item.answer for item in tasks.load("mmlu_pro", benchmark_dir).items}
    assert pro["mmlu_pro/3983"] == "C"
    amc = [item.answer for item in tasks.load("amc23", benchmark_dir).items]
    assert amc[:2] == ["27", "36"] and "-1" in amc


def test_restore_types_of_mbpp_plus_inputs() -> None:
    """Each case has an assertion, an input as JSON has it, and the input with its types."""
    for assertion, lost, found in (
        ("assert f((3, 4), [5]) == 1", [[1], [2]], [(1,), [2]]),
        ("assert f([(1, 2)]) == 1", [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        ("assert f([{1, 2}, {}]) == 1", [[[1, 2]]], [[{1, 2}]]),
        ("assert f({'a': (1,)}) == 1", [{"b": [2, [3]]}], [{"b": (2, [3])}]),
        ("assert f((1, (2, 3))) == 1", [[[1, [2, [3]]]]], [((1, (2, (3,))),)]),
        ("assert f(0, 1j) == 1", ["2", "3j"], [2.0, 3j]),
        ("assert f(1) == 1", ["apple"], ["apple"]),
        ("assert f(2*2)", [[1]], [[1]]),
    ):
        row = {"entry_point": "f", "assertion": assertion, "base_input": [lost], "plus_input": {}}
        assert _plus.restore_types(row) == [found]
        assert repr(_plus.restore_types(row)) == repr([found])


@pytest.mark.parametrize(
    ("rule", "answer", "right"),
    [
        ("equal", 1.0 + 1e-9, True),
        ("equal", 1.0 + 1e-3, False),
        ("equal", None, False),
        ("root", -1.0, True),
        ("root", 0.5, False),
        ("same set", (1.0, 1.0), True),
        ("same set", (1.0, 2.0), False),
        ("match or none", True, True),
        ("match or none", None, False),
    ],
)
def test_plus_rules(rule, answer, right) -> None:
    """The reference returns 1.0, a root of x**2 - 1."""
    expected = (1.0,) if rule == "same set" else 1.0
    tolerance = 1e-4 if rule == "root" else 0
    arguments = ([-1, 0, 1],)
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        _plus_check.check(lambda _: answer, lambda _: expected, [arguments], tolerance, rule)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "q", "answer": "7"}', 'row 1: .* no "####"'),
        ("amc23", "amc23/test.jsonl", '{"id": 1, "question": "q", "answer": 0.5}', "an integer"),
        ("mmlu", "mmlu/test/law_test.csv", '"a\nb",1,2,3,4,A\na,1,2,3,E', "line 3: .*5 columns"),
        ("bbh", "bbh/navigate.json", '{"examples": [{"input": "i"}]}', 'example 0: field "target"'),
        (
            "humaneval",
            "humaneval/HumanEval.jsonl",
            '{"task_id": 7}',
            'line 1: field "task_id" is 7',
        ),
        ("math500", "math500/test.jsonl", "", "'math500' has no items"),
    ],
)
def test_a_file_in_another_format_is_an_error(tmp_path, name, file, text, message) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        tasks.load(name, tmp_path)


def test_unknown_names_and_missing_files_are_errors_with_a_remedy(tmp_path) -> None:
    with pytest.raises(ValueError, match='unknown benchmark "gsm9k"; did you mean "gsm8k"'):
        tasks.load("gsm9k", tmp_path)
    with pytest.raises(ValueError, match='did you mean "math500-base@4"'):
        tasks.load("mat500-base@4", tmp_path)
    with pytest.raises(ValueError, match=r'"aime24" has no prompt for base models.* bbh, gsm8k'):
        tasks.load("aime24-base", tmp_path)
    with pytest.raises(ValueError, match=r"no file .*gsm8k/test.jsonl: set OTR_BENCHMARKS"):
        tasks.load("gsm8k", tmp_path)
    with pytest.raises(ValueError, match="max_items is 0"):
        tasks.load("gsm8k", tmp_path, max_items=0)


def test_missing_worked_examples_are_an_error_for_base_models(tmp_path) -> None:
    path = tmp_path / "gsm8k/test.jsonl"
    path.parent.mkdir()
    path.write_text('{"question": "q", "answer": "#### 7"}')
    assert not tasks.load("gsm8k", tmp_path).items[0].completion
    with pytest.raises(ValueError, match=r"needs worked examples: no gsm8k/train.jsonl in "):
        tasks.load("gsm8k-base", tmp_path)


@pytest.mark.parametrize("change", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}])
def test_invalid_decoding_is_refused(change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Decoding(**{"max_tokens": 8, **change})
