"""Measure models beside their accuracy, per item; see `docs/concepts/measures.md`.

One Ray task with the resources of a training worker loads each model once. The values are stored in
`<run>/measures/<name>.json` and reused for the same weights, examples and precision. Ray must be
running, with room for the task.
"""

import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import prompts
from evals.benchmark import Benchmark, TaskScore
from evals.records import read_answers
from evals.serving.adapters import CONFIG_FILE
from evals.statistics.estimates import ratio_values
from evals.statistics.resampling import Values
from otr.config import ModelConfig
from otr.files import write_json
from pipelines.config.prepared import PreparedRun
from pipelines.runtime import console

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from otr.data import Example

NLL, TOKEN_ACCURACY = "reference/nll", "reference/token_accuracy"
KL_TARGET, KL_GENERAL = "kl/target", "kl/general"
MEAN_TOKENS, CUT_SHARE = "answers/mean_tokens", "answers/cut_share"
MAX_REFERENCES = 128
"""Examples of the validation data whose references are measured."""
MAX_ANSWERS, MAX_ANSWER_TOKENS = 64, 128
"""Answers of the base model per KL, and tokens of each from its beginning."""
_FORMAT = 1  # raise it when the same examples give other values
_MAX_ERROR = 300  # characters


@dataclass(frozen=True)
class ItemValues:
    """A measure per item: a sum over the item's parts, such as the tokens of an answer."""

    ids: tuple[str, ...]
    sums: tuple[float, ...]
    counts: tuple[int, ...]
    """Parts of each item. The measure is sum(sums) / sum(counts)."""

    @property
    def values(self) -> Values:
        """One value per item, whose mean is the measure; see `ratio_values`."""
        return ratio_values(self.sums, self.counts)


Measured = dict[str, ItemValues]
"""By the name of the measure."""


@dataclass(frozen=True)
class Outcome:
    """Measured values, and the errors of models that could not be measured."""

    found: dict[str, Measured] = field(default_factory=dict)
    """By model."""
    errors: dict[str, str] = field(default_factory=dict)
    """By model."""


@dataclass(frozen=True)
class Examples:
    """Token ids to measure models on, by id; a sum over target tokens is taken of each."""

    references: dict[str, "Example"]
    """Of the validation data; the targets are the trained tokens."""
    answers: dict[str, dict[str, "Example"]]
    """By KL measure, the base model's answers; the targets are all tokens of an answer and the
    token that ends it."""

    @property
    def digest(self) -> str:
        """A digest of everything."""
        return hashlib.sha256(json.dumps([self.references, self.answers]).encode()).hexdigest()


def measure_models(
    run: PreparedRun, models: Mapping[str, Path], scores: Mapping[str, Sequence[TaskScore]]
) -> Outcome:
    """Measure models that have been scored; an error is reported, and costs only what it concerns.

    Args:
        run: the run.
        models: name to Hugging Face directory or LoRA adapter; the base model first.
        scores: by model, its scores; the target first.
    """
    outcome = Outcome()
    with console.stage("measure", "reading the references") as stage:
        try:
            for name in models:
                outcome.found[name] = _answer_lengths(run, name)
            examples = make_examples(run, next(iter(models)))
            _measure(run, models, scores, examples, outcome, stage)
        except Exception as error:
            outcome.errors.setdefault("the models", _reason(error))
            traceback.print_exc()  # to the driver's log
        stage.done = not outcome.errors
    for name, reason in outcome.errors.items():
        console.error(
            f"{name} could not be measured beside the accuracy: {reason}; the scores stand, and "
            "the same command tries again"
        )
    return outcome


def make_examples(run: PreparedRun, base: str) -> Examples:
    """Return what the models of a run are measured on.

    Args:
        run: the run.
        base: name of the base model, whose answers are stored.
    """
    from otr.training.corpus import VALIDATION_EXAMPLES, tokenize_locally

    train, (target, *others) = run.config.train, run.benchmarks
    references: dict[str, Example] = {}
    if train.data.validation:
        usable = tokenize_locally(train.data.of_validation, train.model, limit=VALIDATION_EXAMPLES)
        references = {str(i): usable[i] for i in _spread(len(usable), MAX_REFERENCES)}
    general = [benchmark for benchmark in others if not benchmark.name.startswith("target-")]
    folder = run.directory / "scores" / base
    tokenizer = prompts.load_tokenizer(run.model_dir)
    sets = {KL_TARGET: [target], KL_GENERAL: general}
    answers = {
        name: {
            key: example
            for benchmark in benchmarks
            for key, example in _answers(
                tokenizer, benchmark, folder, MAX_ANSWERS // len(benchmarks) or 1
            )
        }
        for name, benchmarks in sets.items()
    }
    return Examples(references, {name: some for name, some in answers.items() if some})


def _answers(
    tokenizer: Any, benchmark: Benchmark, folder: Path, most: int
) -> Iterator[tuple[str, "Example"]]:
    """Yield the first stored answer to each of `most` items, spread evenly, with its prompt."""
    from otr.data import Example  # imports transformers

    rows = [
        row
        for row in read_answers(folder / f"{benchmark.name}.parquet")
        if row["sample"] == 0 and row["finish_reason"] in ("stop", "length")
    ]
    for index in _spread(len(rows), most):
        row = rows[index]
        (prompt,) = prompts.encode(tokenizer, [row["rendered"]], benchmark.style)
        answer = tokenizer.encode(row["text"], add_special_tokens=False)
        if row["finish_reason"] == "stop":
            answer.append(tokenizer.eos_token_id or 0)  # the KL does not depend on this token
        answer = answer[:MAX_ANSWER_TOKENS]
        if answer:
            mask = [False] * len(prompt) + [True] * len(answer)
            yield f"{benchmark.name}/{row['id']}", Example(prompt + answer, mask)


def _answer_lengths(run: PreparedRun, name: str) -> Measured:
    """Return the lengths of a model's answers to the target, and the share cut at the limit."""
    path = run.directory / "scores" / name / f"{run.benchmarks[0].name}.parquet"
    tokens: dict[str, list[int]] = {}
    cut: dict[str, list[bool]] = {}
    for row in read_answers(path):
        tokens.setdefault(row["id"], []).append(row["num_tokens"])
        cut.setdefault(row["id"], []).append(row["finish_reason"] == "length")
    ids, ones = tuple(tokens), (1,) * len(tokens)
    return {
        MEAN_TOKENS: ItemValues(ids, tuple(sum(n) / len(n) for n in tokens.values()), ones),
        CUT_SHARE: ItemValues(ids, tuple(sum(c) / len(c) for c in cut.values()), ones),
    }


def _measure(
    run: PreparedRun,
    models: Mapping[str, Path],
    scores: Mapping[str, Sequence[TaskScore]],
    examples: Examples,
    outcome: Outcome,
    stage: console.Stage,
) -> None:
    """Add what is stored already, then measure the other models in a Ray task."""
    base, *_ = models
    common = {
        "format": _FORMAT,
        "base": _weights(scores[base]),
        "dtype": run.config.train.model.dtype,
        "examples": examples.digest,
    }
    folder = run.directory / "measures"
    folder.mkdir(exist_ok=True)
    missing: dict[str, Path] = {}
    identities = {name: common | {"weights": _weights(scores[name])} for name in models}
    for name, path in models.items():
        stored = _stored(folder / f"{name}.json", identities[name])
        if stored is None:
            missing[name] = path
        else:
            outcome.found[name] |= stored
    done = len(models) - len(missing)
    stage.say(f"{done} of {len(models)} models measured")
    for name, result in _measured_by_ray(run, base, missing, examples) if missing else ():
        if isinstance(result, str):
            outcome.errors[name] = result
            continue
        content = {m: [v.ids, v.sums, v.counts] for m, v in result.items()}
        write_json(folder / f"{name}.json", {"identity": identities[name], "measures": content})
        outcome.found[name] |= result
        done += 1
        stage.say(f"{done} of {len(models)} models measured")


def _weights(scores: Sequence[TaskScore]) -> str:
    """Return the digest of the weights that gave these scores."""
    return scores[0].settings["weights"]


def _stored(path: Path, identity: Mapping[str, Any]) -> Measured | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    if content["identity"] != identity:
        return None
    return {m: ItemValues(*map(tuple, value)) for m, value in content["measures"].items()}


def _measured_by_ray(
    run: PreparedRun, base: str, models: Mapping[str, Path], examples: Examples
) -> Iterator[tuple[str, Measured | str]]:
    import ray

    from otr.training.driver import runtime_environment

    train = run.config.train
    resources: dict[str, Any] = {"num_cpus": train.workers.cpus, "num_gpus": train.workers.gpus}
    resources["runtime_env"] = runtime_environment(train.workers)
    # A lost process is not retried: the values that have arrived are stored.
    remote: Any = ray.remote(max_retries=0, num_returns="streaming", **resources)
    stream = remote(measure_in_turn).remote(
        {name: str(path) for name, path in models.items()},
        base,
        train.model,
        examples,
        max(1, int(train.workers.cpus)),
    )
    for result in stream:
        yield ray.get(result)


def measure_in_turn(
    models: Mapping[str, str],
    base: str,
    base_config: ModelConfig,
    examples: Examples,
    threads: int = 1,
) -> Iterator[tuple[str, Measured | str]]:
    """Yield the name of each model with its values, or with what went wrong.

    Args:
        models: name to directory; the base model need not be among them.
        base: name of the base model.
        base_config: how to load the base model, and the precision for all models.
        examples: what to measure on.
        threads: number of CPU threads.
    """
    import torch

    from otr.measure import kl_sums, predict_states

    torch.set_num_threads(threads)
    dtype, states = base_config.dtype, {}
    try:
        model = _load(base_config, base_config.path)
        if models.keys() - {base}:
            for name, some in examples.answers.items():
                states[name] = predict_states(model, [*some.values()], dtype)
        measured = _references(model, examples, dtype) if base in models else {}
        del model
    except Exception as error:
        traceback.print_exc()
        yield base, _reason(error)
        return  # the others are compared with it
    if base in models:
        yield base, measured
    for name in [name for name in models if name != base]:
        try:
            model = _load(base_config, models[name])
            measured = _references(model, examples, dtype)
            for kl, some in examples.answers.items():
                sums = kl_sums(states[kl], predict_states(model, [*some.values()], dtype))
                counts = tuple(sum(mask) for _, mask in some.values())
                measured[kl] = ItemValues(tuple(some), tuple(sums), counts)
            del model
        except Exception as error:
            traceback.print_exc()
            yield name, _reason(error)
        else:
            yield name, measured


def _load(base: ModelConfig, path: str) -> "PreTrainedModel":
    """Load a model, or the base model with an adapter, on this process's device."""
    import torch

    from otr.models.load import load_model

    model: Any
    if (Path(path) / CONFIG_FILE).is_file():
        from otr.models.lora import load_adapters  # imports peft

        model = load_adapters(path, base)
    else:
        model = load_model(replace(base, path=path))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _references(model: "PreTrainedModel", examples: Examples, dtype: str) -> Measured:
    from otr.measure import reference_sums

    if not examples.references:
        return {}
    ids = tuple(examples.references)
    sums = reference_sums(model, [*examples.references.values()], dtype)
    tokens = tuple(sums.tokens)
    return {
        NLL: ItemValues(ids, tuple(sums.nll), tokens),
        TOKEN_ACCURACY: ItemValues(ids, tuple(sums.right), tokens),
    }


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` indices below `count`, spread evenly."""
    chosen = min(count, most)
    return [index * count // chosen for index in range(chosen)]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_ERROR]}"
