"""Overlap of a corpus with benchmarks: n-grams of words, counted per item."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from evals.benchmark import Benchmark, Decoding, Item
from otr.config import DataConfig
from pipelines.stages import contamination
from pipelines.stages.contamination import Overlap, grams, hits

LONG = " ".join(f"word{n}" for n in range(30))


def found(items: list[Item], *corpus: list[str]) -> Counter[int]:
    return hits(corpus, grams([items]))


def item(name: str, prompt: str, subject: str = "") -> Item:
    return Item(name, prompt, "", meta={"subject": subject} if subject else {})


def words(first: int, count: int) -> str:
    return " ".join(LONG.split()[first : first + count])


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none() -> None:
    items = [item("a", f"{LONG} alpha"), item("b", "beta")]
    assert found(items, [f"Before, {words(5, 13)}, after."]) == {0: 1}
    assert found(items, [f"Before, {words(5, 12)}, after."]) == {}
    assert found(items, [words(5, 7), words(12, 6)]) == {}, "n-grams do not span turns"
    assert found(items, [words(5, 13)], ["nothing"], [words(8, 13), words(9, 13)]) == {0: 2}


def test_case_and_punctuation_do_not_hide_an_overlap() -> None:
    items = [
        item("a", "If x = 3, what is f(x) + 2?  Give the value of y; not of z!"),
        item("b", ""),
    ]
    text = "IF X 3 WHAT IS F X 2 GIVE THE VALUE OF Y NOT OF Z"
    assert found(items, [text.title().replace(" ", "_ ")]) == {0: 1}


def test_shorter_items_need_their_whole_length_and_very_short_ones_a_whole_text() -> None:
    items = [item("ten", words(0, 10)), item("four", words(20, 4)), item("none", "?")]
    assert found(items, [f"so {words(0, 10)} then"]) == {0: 1}
    assert found(items, [f"so {words(0, 9)} then"]) == {}
    assert found(items, [f"so {words(20, 4)} then"]) == {}
    assert found(items, [f"{words(20, 4)}!"], [""]) == {1: 1}


def test_an_instruction_that_all_items_share_is_no_overlap() -> None:
    instruction = "Please reason step by step, and put your final answer within a box, dear."
    items = [item(str(n), f"Question: {words(n, 8)} {n}\n{instruction}") for n in range(5)]
    assert found(items, [f"Question: something else\n{instruction}"]) == {}
    assert found(items, [f"{words(3, 8)} 3 {instruction}"]) == {3: 1}
    by_subject = [
        *items,
        *(item(f"s{n}", f"{words(n, 9)} other {instruction} yes", "s") for n in (1, 2)),
    ]
    assert found(by_subject, [f"Question: something else\n{instruction} yes"]) == {}


def test_an_item_alone_in_its_subject_loses_the_instruction_too() -> None:
    instruction = "Please reason step by step, and put your final answer within a box, dear."
    items = [item(str(n), f"{words(n, 8)} {n} {instruction}", str(n)) for n in range(3)]
    assert found(items, [f"something else 0 {instruction}"]) == {}


def test_items_are_numbered_through_several_benchmarks() -> None:
    known = grams([[item("a", words(0, 13)), item("b", "b")], [item("c", words(10, 13))]])
    assert hits([[words(10, 13)]], known) == {2: 1}


def test_it_agrees_with_sets_of_words_on_random_texts() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(["a", "b"], size=40)) for _ in range(200)]
    items = [item(str(n), f"{n} {text} {n}") for n, text in enumerate(texts[:20])]

    def windows(text: str) -> set[tuple[str, ...]]:
        split = text.split()
        return {tuple(split[i : i + 13]) for i in range(len(split) - 12)}

    expected = Counter(
        n for n, each in enumerate(items) for text in texts if windows(each.prompt) & windows(text)
    )
    assert found(items, *([text] for text in texts)) == expected
    assert 0 < sum(expected.values()) < 20 * 200


def test_a_stored_result_is_reused(tmp_path: Path, monkeypatch) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"prompt": words(0, 20), "completion": "x"}) + "\n")
    made = Benchmark(
        "made", "other", (item("a", words(2, 14)),), lambda *_: True, Decoding(1), "accuracy", ""
    )
    data, counted = DataConfig((str(corpus),)), []

    def count(data, known):
        counted.append(data)
        return hits([[words(0, 20)]], known), 1

    monkeypatch.setattr(contamination, "_count_hits", count)
    first = contamination.check(data, [made], tmp_path)
    assert first == {"made": Overlap("made", 1, {"a": 1})} and first["made"].share == 1
    assert contamination.check(data, [made], tmp_path) == first and len(counted) == 1
    corpus.write_text(corpus.read_text() * 2)
    contamination.check(data, [made], tmp_path)
    assert len(counted) == 2, "the corpus has changed"
    stored = json.loads((tmp_path / "contamination.json").read_text())
    assert stored["benchmarks"] == [{"benchmark": "made", "items": 1, "hits": {"a": 1}}]


def test_an_overlap_in_words() -> None:
    assert str(Overlap("b", 4, dict.fromkeys("wxyz", 1))) == (
        "b: 4 of 4 items in the corpus (w, x, y, ...)"
    )
