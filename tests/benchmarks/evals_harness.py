"""Answers and verdicts compared with EleutherAI's lm-evaluation-harness, item by item.

The harness runs in its own process (`pip install lm-eval`). It sends requests to the engine's
OpenAI-compatible endpoint, with the prompts of a benchmark as a task in its own format, its
generation settings and both answer rules of its gsm8k.yaml. We generate with `ServedModel` and
grade with `evals.grading.published`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.grading import published
from evals.jobs import Job, make_jobs
from evals.serving.engine import Engine
from tests.assets.newcomer import REPOSITORY
from tests.benchmarks.evals_peer import load_benchmarks

MISSING = "lm-eval is not installed: pip install lm-eval"
STOPS = ["Question:", "</s>", "<|im_end|>"]
RULES: dict[str, Callable[[str], str]] = {
    "strict-match": published.gsm8k_strict,
    "flexible-extract": published.gsm8k_flexible,
}
TASK = """\
task: otr_same
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{rendered}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: {until}, do_sample: false, temperature: 0.0, max_gen_toks: {most}}}
num_fewshot: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
"""


def installed() -> bool:
    return importlib.util.find_spec("lm_eval") is not None


def compare(engine: Engine, model: Path, file: str, max_items: int) -> dict[str, Any]:
    """Count items whose text or verdict differs; compute the scores by both rules.

    Raises:
        RuntimeError: the harness failed.
    """
    (job,) = make_jobs(model, load_benchmarks([file], max_items), engine.settings)
    with tempfile.TemporaryDirectory() as directory:
        theirs = _harness(engine, model, job, Path(directory))
    texts = _ours(engine, job)
    differ: dict[str, int] = {
        "text": sum(a != b for a, b in zip(texts, theirs["text"], strict=True))
    }
    scores = {}
    for rule, read in RULES.items():
        ours = [
            float(read(text) == item.answer)
            for text, item in zip(texts, job.benchmark.items, strict=True)
        ]
        differ[rule] = sum(a != b for a, b in zip(ours, theirs[rule], strict=True))
        scores[rule] = sum(ours) / len(ours)
    return {"items": len(texts), "differ": differ, "scores": scores, "most": max(differ.values())}


def _ours(engine: Engine, job: Job) -> list[str]:
    decoding = job.benchmark.decoding
    found = engine.generate(
        job.prompts.token_ids,
        type(decoding)(max_tokens=decoding.max_tokens, stop=tuple(STOPS)),
        stop_token_ids=job.prompts.stop_token_ids,
    )
    return [completion.text for (completion,) in found if completion is not None]


def _harness(engine: Engine, model: Path, job: Job, folder: Path) -> dict[str, list[Any]]:
    rows = folder / "rows.jsonl"
    prompts = zip(job.prompts.rendered, job.benchmark.items, strict=True)
    rows.write_text(
        "".join(json.dumps({"rendered": text, "answer": i.answer}) + "\n" for text, i in prompts)
    )
    most = job.benchmark.decoding.max_tokens
    (folder / "same.yaml").write_text(
        TASK.format(rows=json.dumps(str(rows)), until=json.dumps(STOPS), most=most)
    )
    length = engine.settings.max_model_len
    arguments = f"model=replica-0,base_url={engine.url}/completions,tokenizer={model}"
    arguments += f",num_concurrent=16,max_length={length},tokenized_requests=True,max_retries=1"
    words = ["--model", "local-completions", "--model_args", arguments, "--tasks", "otr_same"]
    words += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    words += ["--log_samples"]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"lm-eval failed: {done.stderr[-2000:]}")
    (log,) = folder.glob("out/**/samples_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    found: dict[str, list[Any]] = {
        rule: [s["exact_match"] for s in samples if s["filter"] == rule] for rule in RULES
    }
    found["text"] = [s["resps"][0][0] for s in samples if s["filter"] == "strict-match"]
    return found
