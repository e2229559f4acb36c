"""Scoring with vLLM's own offline engine: ``python -m tests.benchmarks.evals_peer``.

Takes a role, a model directory and benchmarks on the command line, and prints lines of JSON:

score     the scores of the directory. The time of the whole process is what a checkpoint costs if
          it gets its own vLLM.
generate  after each line on standard input, {"tokens", "seconds"} for all prompts
own-choice  the same, with the kernels and threads that vLLM chooses itself
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from evals import tasks
from evals.benchmark import Benchmark
from evals.jobs import make_jobs
from evals.score import score
from evals.serving.plan import plan
from evals.serving.requests import Response, ServedModel
from evals.settings import EngineSettings


class Offline:
    """Stand-in for `evals.serving.replicas.Replicas`, with vllm.LLM as the engine."""

    def __init__(
        self, model_dir: Path, settings: EngineSettings, *, own_choice: bool = False
    ) -> None:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        planned = plan(settings)
        if not own_choice:
            os.environ.update(planned.environment)
        from vllm import LLM

        arguments = dict(planned.engine)
        del arguments["worker_extension_cls"]
        if own_choice:
            del arguments["enforce_eager"]
        self.llm = LLM(str(model_dir), disable_log_stats=True, **arguments)

    def stream_responses(self, requests: dict, options: dict[str, Any]):
        from vllm import SamplingParams

        shared = {name: value for name, value in options.items() if name != "adapter"}
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(request.prompt)} for request in requests.values()],
            [
                SamplingParams(max_tokens=r.max_tokens, seed=r.seed, **shared)
                for r in requests.values()
            ],
            use_tqdm=False,
        )
        for key, output in zip(requests, outputs, strict=True):
            completion = output.outputs[0]
            yield (
                key,
                Response(completion.text, completion.finish_reason, completion.token_ids),
            )


def generate_all(served: Any, model_dir: Path, benchmarks: list[Benchmark]) -> dict[str, float]:
    """Generate all prompts once; return {"tokens", "seconds"}."""
    jobs = make_jobs(model_dir, benchmarks, served.settings)
    start, tokens = time.perf_counter(), 0
    for job in jobs:
        answers = served.generate(
            job.prompts.token_ids,
            job.benchmark.decoding,
            stop_token_ids=job.prompts.stop_token_ids,
            seeds=job.item_ids,
        )
        tokens += sum(completion.num_tokens for samples in answers for completion in samples)
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def load_benchmarks(files: list[str], max_items: int) -> list[Benchmark]:
    """Load benchmarks, given files or names."""
    names = [f"file:{each}" if Path(each).is_file() else each for each in files]
    return [tasks.load(name, None, max_items=max_items or None) for name in names]


def main() -> None:
    role, settings_text, directory, max_items, *files = sys.argv[1:]
    settings = EngineSettings(**json.loads(settings_text))
    model_dir, benchmarks = Path(directory), load_benchmarks(files, int(max_items))
    offline = Offline(model_dir, settings, own_choice=role == "own-choice")
    served = ServedModel(offline, settings, model_dir)  # type: ignore[arg-type]
    if role == "score":
        scores = score(lambda: served, settings, model_dir, benchmarks)  # type: ignore[arg-type,return-value]
        print(json.dumps({one.task: one.value for one in scores}), flush=True)
        return
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        print(json.dumps(generate_all(served, model_dir, benchmarks)), flush=True)


if __name__ == "__main__":
    main()
