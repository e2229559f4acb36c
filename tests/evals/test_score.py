"""score(): prompts, verdicts, stored files, reuse. The engine is a fake that adds numbers."""

import dataclasses
import random
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evals.benchmark import Benchmark, Decoding, Item, TaskScore
from evals.records import Verdicts, read_answers, read_verdicts
from evals.score import score
from evals.serving.requests import Completion, SampleKey
from evals.settings import EngineSettings
from tests.assets.tiny import TURN_END, make_tiny_model

TIMEOUT = Completion("", "timeout", 0)


class Killed(BaseException):
    """Stands for a signal that kills the process."""


class Calculator:
    """Completes "A + B" with the sum, but with 100 if both A and the sample's number are odd.

    The last sample times out. Completions come in any order, as from an engine; after `lives` of
    them it raises `Killed`.
    """

    def __init__(self, model_dir: Path, lives: int = 1000) -> None:
        self.settings = EngineSettings(dtype="float32", max_model_len=1024)
        self.model_dir = model_dir
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.lives = lives
        self.generated: list[dict] = []

    def swap(self, checkpoint_dir: Path) -> None:
        self.model_dir = checkpoint_dir

    def generate(self, prompts, decoding, *, stop_token_ids, seeds, on_completion, skip):
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        keys = [SampleKey(i, n) for i in range(len(texts)) for n in range(decoding.num_samples)]
        wanted = [key for key in keys if key not in skip]
        call = {"texts": texts, "stop": list(stop_token_ids), "seeds": seeds, "keys": wanted}
        self.generated.append(call)
        for key in random.Random(0).sample(wanted, len(wanted)):
            a, b = map(int, re.findall(r"(\d+) \+ (\d+)", texts[key.item])[-1])
            total = 100 if a % 2 and key.sample % 2 else a + b
            if not self.lives:
                raise Killed
            self.lives -= 1
            timed_out = key == keys[-1]
            on_completion(key, TIMEOUT if timed_out else Completion(f"It is {total}", "stop", 4))


class Started(Exception):
    """The engine was needed."""


def no_engine() -> Calculator:
    raise Started


def score_on(engine: Calculator, model_dir: Path, benchmarks, **more) -> list[TaskScore]:
    return score(lambda: engine, engine.settings, model_dir, benchmarks, **more)


def right(item: Item, text: str) -> bool:
    return text == f"It is {item.answer}"


def last_word(item: Item, text: str) -> str:
    return text.rpartition(" ")[2]


def last_word_is_even(item: Item, text: str) -> bool:
    return text[-1:] in set("02468")


@pytest.fixture
def model(tmp_path) -> Path:
    return make_tiny_model(tmp_path / "model")


@pytest.fixture
def sums() -> Benchmark:
    items = tuple(Item(str(n), f"{n} + 1", str(n + 1)) for n in range(4))
    decoding = Decoding(max_tokens=8, num_samples=2)
    return Benchmark(
        "sums", "mathematics", items, right, decoding, "avg@2", "made up", extract=last_word
    )


def test_value_prompts_and_files(model, sums, tmp_path):
    engine = Calculator(model)
    [result] = score_on(engine, model, [sums], results_dir=tmp_path / "results")
    # Of 8 answers the second ones of items 1 and 3 are wrong; the last timed out.
    assert result.value == 6 / 8
    assert result.low < result.value < result.high
    assert result.settings["num_timeouts"] == 1
    [call] = engine.generated
    assert call["texts"][1] == f"<|im_start|>user\n1 + 1{TURN_END}\n<|im_start|>assistant\n"
    assert call["stop"] == [engine.tokenizer.convert_tokens_to_ids(TURN_END)]
    assert call["seeds"] == ["0", "1", "2", "3"]
    rows = read_answers(tmp_path / "results/sums.parquet")
    assert [(row["id"], row["sample"]) for row in rows] == [(i, n) for i in "0123" for n in (0, 1)]
    assert [row["correct"] for row in rows] == [True, True, True, False, True, True, True, False]
    assert rows[3]["text"] == "It is 100" and rows[3]["extracted"] == "100"
    assert (rows[2]["prompt"], rows[2]["answer"]) == ("1 + 1", "2")
    assert rows[2]["rendered"] == call["texts"][1]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"sums.json", "sums.parquet"}


def test_answers_that_were_cut_off_in_a_loop_are_counted(model, sums):
    class Loops(Calculator):
        def generate(self, *arguments, on_completion, **more):
            def looping(key, completion):
                text = completion.text + " and so on" * (30 if key.item < 3 else 1)
                reason = "stop" if key.item == 0 else "length"
                on_completion(key, dataclasses.replace(completion, text=text, finish_reason=reason))

            super().generate(*arguments, on_completion=looping, **more)

    [result] = score_on(Loops(model), model, [sums])
    assert (result.settings["num_truncated"], result.settings["num_repeating"]) == (6, 4)


def test_thoughts_are_no_answers_and_unfinished_ones_are_counted(model, sums):
    class Thinks(Calculator):
        def generate(self, *arguments, on_completion, **more):
            def thinking(key, completion):
                ends = "" if key.item == 0 else "</think>"
                text = f"<think>It is 100, or It is 1{ends}{completion.text}"
                on_completion(key, dataclasses.replace(completion, text=text))

            super().generate(*arguments, on_completion=thinking, **more)

    [plain] = score_on(Calculator(model), model, [sums])
    by_words = dataclasses.replace(sums, as_text=lambda item, text: not text[-1:].isdigit())
    [result] = score_on(Thinks(model), model, [by_words])
    # Both answers to item 0, which would be right. With the timeout, 3 answers are empty.
    assert result.settings["num_unfinished_thoughts"] == 2
    assert result.value == plain.value - 2 / 8
    assert (plain.settings["num_as_text"], plain.settings["num_unfinished_thoughts"]) == (0, 0)
    assert result.settings["num_as_text"] == 3


def test_the_engine_says_what_was_left_open(model, sums):
    engine = Calculator(model)
    open_ = EngineSettings(num_replicas=2)
    [result] = score(lambda: engine, open_, model, [sums])
    assert (result.settings["dtype"], result.settings["max_model_len"]) == ("float32", 1024)
    with pytest.raises(AssertionError, match="stored under another dtype"):
        score(lambda: engine, EngineSettings("bfloat16", 1024), model, [sums])


def test_several_samples_per_item_give_further_metrics(model, sums):
    [result] = score_on(Calculator(model), model, [sums])
    assert list(result.also) == ["pass@1", "pass@2", "maj@2"]
    assert [result.also[name][0] for name in result.also] == [6 / 8, 1, 7 / 8]
    assert all(low <= value <= high for value, low, high in result.also.values())


def test_harmonic_mean_over_subjects(model, sums, tmp_path):
    items = tuple(
        dataclasses.replace(item, meta={"subject": "odd" if int(item.id) % 2 else "even"})
        for item in sums.items
    )
    by_subject = dataclasses.replace(sums, items=items, average="harmonic over subjects")
    [result] = score_on(Calculator(model), model, [by_subject], results_dir=tmp_path)
    assert result.value == pytest.approx(2 / (1 / 1.01 + 1 / 0.51))  # even: all right; odd: half
    verdicts = read_verdicts(tmp_path / "sums.parquet")
    assert verdicts == Verdicts(tuple("0123"), (1, 0.5, 1, 0.5), ("even", "odd") * 2)


@pytest.mark.parametrize("torn", ["", '{"id": "3", "sam', '{"id": "3"}\n', "\0\0\0\n"])
def test_a_killed_run_resumes_with_the_missing_samples(model, sums, tmp_path, torn):
    complete, results = tmp_path / "complete", tmp_path / "results"
    [expected] = score_on(Calculator(model), model, [sums], results_dir=complete)
    with pytest.raises(Killed):
        score_on(Calculator(model, lives=5), model, [sums], results_dir=results)
    journal = results / "sums.journal"
    stored = len(journal.read_text().splitlines()) - 1
    assert stored in (4, 5), "every completion but a timeout"
    with journal.open("a") as file:
        file.write(torn)
    engine = Calculator(model)
    reports = []
    result = score_on(
        engine, model, [sums], results_dir=results, progress=lambda *report: reports.append(report)
    )
    assert result == [expected]
    assert len(engine.generated[0]["keys"]) == 8 - stored
    assert (reports[0], reports[-1]) == (("sums", stored, 8), ("sums", 8, 8))
    assert read_answers(results / "sums.parquet") == read_answers(complete / "sums.parquet")
    assert not journal.exists()


def test_an_error_of_a_grader_names_the_item_and_loses_no_answer(model, sums, tmp_path):
    def fails(item: Item, text: str) -> bool:
        return item.id != "2" or text / 2 == 1

    with pytest.raises(ValueError, match=r"sums: the grader fails on an answer to item '2' \(Type"):
        failing = dataclasses.replace(sums, grade=fails)
        score_on(Calculator(model), model, [failing], results_dir=tmp_path)
    engine = Calculator(model)
    score_on(engine, model, [sums], results_dir=tmp_path)
    assert len(engine.generated[0]["keys"]) == 1, "the one that timed out"


def test_answers_are_graded_again_but_not_generated_when_only_the_grader_differs(
    model, sums, tmp_path
):
    [before] = score_on(Calculator(model), model, [sums], results_dir=tmp_path)
    texts = [row["text"] for row in read_answers(tmp_path / "sums.parquet")]
    mended = dataclasses.replace(sums, grade=last_word_is_even)
    engine = Calculator(model)
    [after] = score_on(engine, model, [mended], results_dir=tmp_path)
    assert len(engine.generated[0]["keys"]) == 1, "the one that timed out"
    assert (before.value, after.value) == (6 / 8, 3 / 8)
    assert [row["text"] for row in read_answers(tmp_path / "sums.parquet")] == texts
    other = dataclasses.replace(sums, decoding=Decoding(max_tokens=9, num_samples=2))
    engine = Calculator(model)
    score_on(engine, model, [other], results_dir=tmp_path)
    assert len(engine.generated[0]["keys"]) == 8


def test_a_journal_of_another_job_is_dropped(model, sums, tmp_path):
    with pytest.raises(Killed):
        score_on(Calculator(model, lives=5), model, [sums], results_dir=tmp_path)
    other = make_tiny_model(tmp_path / "other", seed=1)
    engine = Calculator(other)
    score_on(engine, other, [sums], results_dir=tmp_path)
    assert len(engine.generated[0]["keys"]) == 8


def test_a_base_model_continues_a_text(model, sums):
    items = tuple(
        dataclasses.replace(item, completion=f"0 + 1\n1\n{item.prompt}\n") for item in sums.items
    )
    base = dataclasses.replace(sums, items=items, style="completion")
    tokenizer = AutoTokenizer.from_pretrained(model)
    (model / "chat_template.jinja").unlink()
    for name, offer in (("gsm8k@4", "'gsm8k-base@4' in place of"), ("sums", "one of .*gsm8k-base")):
        with pytest.raises(ValueError, match=f"no chat template.* with {offer}"):
            score_on(Calculator(model), model, [dataclasses.replace(sums, name=name)])
    engine = Calculator(model)
    [result] = score_on(engine, model, [base])
    assert result.value == 6 / 8
    [call] = engine.generated
    assert call["texts"][1] == "0 + 1\n1\n1 + 1\n"
    assert tokenizer.eos_token_id in call["stop"]


def test_scores_are_reused_only_for_the_same_weights_items_and_settings(model, sums, tmp_path):
    engine, results = Calculator(model), tmp_path / "results"
    first = score_on(engine, model, [sums], results_dir=results)
    assert score(no_engine, engine.settings, model, [sums], results_dir=results) == first
    without = tmp_path / "without answers"
    without.mkdir()
    (without / "sums.json").write_bytes((results / "sums.json").read_bytes())
    with pytest.raises(Started):
        score(no_engine, engine.settings, model, [sums], results_dir=without)

    other = make_tiny_model(tmp_path / "other", seed=1)
    warmer = dataclasses.replace(sums, decoding=dataclasses.replace(sums.decoding, temperature=1.0))
    fewer = dataclasses.replace(sums, items=sums.items[:3])
    shorter = dataclasses.replace(engine.settings, max_model_len=64)
    for directory, benchmark, settings in (
        (other, sums, engine.settings),
        (model, warmer, engine.settings),
        (model, fewer, engine.settings),
        (model, sums, shorter),
    ):
        with pytest.raises(Started):
            score(no_engine, settings, directory, [benchmark], results_dir=results)
    score_on(engine, other, [sums], results_dir=results)
    assert engine.model_dir == other
    assert len(engine.generated) == 2


def test_answers_end_at_the_turn_end_even_if_sequences_end_with_another_token(model, sums):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").unlink()
    engine = Calculator(model)
    score_on(engine, model, [sums])
    expected = tokenizer.convert_tokens_to_ids(["<|endoftext|>", TURN_END])
    assert engine.generated[0]["stop"] == sorted(expected)


def test_errors_name_the_input(model, sums, tmp_path):
    engine = Calculator(model)
    with pytest.raises(ValueError, match="same name"):
        score_on(engine, model, [sums, sums])
    with pytest.raises(ValueError, match="'sums' has no items"):
        score_on(engine, model, [dataclasses.replace(sums, items=())])
    twice = dataclasses.replace(sums, items=(*sums.items, sums.items[1]))
    with pytest.raises(ValueError, match="'sums' has the id '1' more than once"):
        score_on(engine, model, [twice])
    long = (*sums.items, dataclasses.replace(sums.items[0], id="long", prompt="1 + " * 1200))
    with pytest.raises(
        ValueError, match=r"'long' has \d+ tokens.*1 of 5.*give --engine.max-model-len"
    ):
        score_on(engine, model, [dataclasses.replace(sums, items=long)])
    with pytest.raises(ValueError, match="no tokenizer"):
        score_on(engine, tmp_path / "nowhere", [sums])
    assert engine.generated == []
