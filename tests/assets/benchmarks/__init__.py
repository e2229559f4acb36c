"""Three items of each data set on the hub that the benchmarks read, in its published format.

`write` creates them in a folder; `datasets` loads them if that is the current folder. The items are
written for these tests. HumanEval/32 has a wrong call like that of the published file.
"""

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

_DOUBLE = {
    "prompt": 'def double(x):\n    """Return twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
}
_CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"
_ROOT_CHECK = (
    "def _poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n"
    "def check(candidate):\n    for inp in [[[2, 1]], [[-6, 2]]]:\n"
    "        assert _poly(*candidate(*inp), inp) <= 0.0001\n"
)


def _three(row: dict[str, Any], key: str, *values: Any) -> Rows:
    return [{**row, key: value} for value in values]


def _mbpp(number: int) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def plus(x):\r\n  return x + {number}",
        "test_list": [f"assert plus({x}) == {x + number}" for x in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def _mbpp_plus(number: int) -> dict[str, Any]:
    row = _mbpp(number)
    return {
        "task_id": number,
        "code": row["code"],
        "prompt": row["text"],
        "source_file": "here",
        "test_imports": [],
        "test_list": row["test_list"],
        "test": "\n".join(row["test_list"]) + f"\nassert plus(1.5) == {number + 1.5}\n",
    }


def _supergpqa(uuid: str, letter: str) -> dict[str, Any]:
    options = [f"{number} apples" for number in range(10)]
    return {
        "uuid": uuid,
        "question": "How many apples?",
        "options": options,
        "answer": options["ABCDEFGHIJ".index(letter)],
        "answer_letter": letter,
        "discipline": "Agronomy",
        "field": "Horticulture",
        "subfield": "Pomology",
        "difficulty": "easy",
        "is_calculation": False,
    }


def _gsm8k(count: int) -> Rows:
    return [
        {"question": f"What is {n} + 1000?", "answer": f"It is 1000 + {n}.\n#### 1,00{n}"}
        for n in range(count)
    ]


_MATH = {"solution": "So it is $\\boxed{7}$.", "answer": "7", "subject": "Algebra", "level": 1}
_MINERVA = [
    "Find the domain of the expression $\\frac{\\sqrt{x-2}}{\\sqrt{5-x}}$.",
    "If $\\det \\mathbf{A} = 2$ and $\\det \\mathbf{B} = 12,$ then find it.",
    "Terrell usually lifts two 20-pound weights 12 times. And then?",
    "Solve\n6x-4y&=a,\\\\\n6y-9x &=b.\nfor it.",
]
_PRO = {
    "question": "Which?",
    "options": ["one", "two", "three"],
    "answer": "B",
    "answer_index": 1,
    "cot_content": "A: Let's think step by step. It is two. The answer is (B).",
    "src": "here",
}
_MMLU = [
    {"question": "Which?", "subject": subject, "choices": list("wxyz"), "answer": answer}
    for subject, answer in (("anatomy", 0), ("machine_learning", 2), ("machine_learning", 3))
]
_ARC = {
    "question": "Which?",
    "choices": {"text": list("wxyz"), "label": list("1234")},
    "answerKey": "3",
}
_BBEH = {"task": "dyck languages", "input": "Close (", "mini": 0}
_AIME = {"problem": "1 + 1?", "solution": "It is 2.", "url": "here"}

# name -> configuration, "default" if there is only one -> split -> rows
SETS: dict[str, dict[str, dict[str, Rows]]] = {
    "openai/gsm8k": {"main": {"train": _gsm8k(6), "test": _gsm8k(3)}},
    "HuggingFaceH4/MATH-500": {
        "default": {"test": _three({**_MATH, "problem": "3 + 4?"}, "unique_id", "a", "b", "c")}
    },
    "DigitalLearningGmbH/MATH-lighteval": {
        "default": {"train": [{**_MATH, "problem": problem} for problem in _MINERVA[::-1]]}
    },
    "math-ai/olympiadbench": {
        "default": {
            "test": _three(
                {"question": "3 + 4?", "final_answer": ["$7$,$8$"], "subfield": "Algebra"},
                "id",
                *(1, 2, 3),
            )
        }
    },
    "math-ai/minervamath": {
        "default": {"test": _three({"question": "How hot?"}, "answer", "1e3", "7", "\\pi")}
    },
    "math-ai/amc23": {
        "default": {"test": _three({"question": "3 + 4?", "answer": "7.0"}, "id", 1, 2, 3)}
    },
    "HuggingFaceH4/aime_2024": {
        "default": {"train": [{**_AIME, "id": n, "answer": f"02{n}"} for n in range(3)]}
    },
    "math-ai/aime25": {
        "default": {"test": _three({"problem": "3 + 4?", "answer": "336^\\circ"}, "id", *"012")}
    },
    "openai/openai_humaneval": {
        "default": {"test": _three({**_DOUBLE, "test": _CHECK}, "task_id", "H/0", "H/1", "H/2")}
    },
    "evalplus/humanevalplus": {
        "default": {
            "test": [
                *_three({**_DOUBLE, "test": _CHECK}, "task_id", "HumanEval/0", "HumanEval/1"),
                {
                    "task_id": "HumanEval/32",
                    "prompt": 'def find_zero(xs):\n    """Return a root."""\n',
                    "canonical_solution": "    return -xs[0] / xs[1]\n",
                    "entry_point": "find_zero",
                    "test": _ROOT_CHECK,
                },
            ]
        }
    },
    "google-research-datasets/mbpp": {
        "full": {
            "prompt": [_mbpp(number) for number in (2, 3, 4)],
            "test": [_mbpp(number) for number in (11, 12, 13)],
        }
    },
    "evalplus/mbppplus": {"default": {"test": [_mbpp_plus(number) for number in (2, 3, 4)]}},
    "lukaemon/bbh": {
        "boolean_expressions": {"test": [{"input": "not True is", "target": "False"}]},
        "hyperbaton": {"test": _three({"input": "Which order?"}, "target", "(A)", "(B)")},
    },
    "BBEH/bbeh": {
        "default": {"train": [{**_BBEH, "target": ")"}, *_three(_BBEH, "target", "] )", "))")]}
    },
    "allenai/ai2_arc": {"ARC-Challenge": {"test": _three(_ARC, "id", *"012")}},
    "cais/mmlu": {"all": {"dev": _MMLU, "test": _MMLU}},
    "TIGER-Lab/MMLU-Pro": {
        "default": {
            "validation": [{**_PRO, "question_id": 0, "category": "law"}],
            "test": _three({**_PRO, "category": "law"}, "question_id", 70, 71, 72),
        }
    },
    "m-a-p/SuperGPQA": {
        "default": {"train": [_supergpqa("a", "A"), _supergpqa("b", "J"), _supergpqa("c", "C")]}
    },
}
SETS["BBEH/bbeh"]["default"]["train"][0]["mini"] = 1


def write(root: Path) -> None:
    """Write all data sets into the folder `root`."""
    for name, configs in SETS.items():
        card = ["---", "configs:"]
        for config, splits in configs.items():
            card += [f"- config_name: {config}", "  data_files:"]
            for split, rows in splits.items():
                path = root / name / config / f"{split}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
        (root / name / "README.md").write_text("\n".join([*card, "---", ""]))
