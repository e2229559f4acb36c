"""What was not given is chosen from model, data and machine, once, with a reason."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals import hardware
from evals.hardware import GIB, Machine
from otr.config import DataConfig, ModelConfig
from otr.training.corpus import inspect_corpus, pack_locally
from pipelines import cli
from pipelines.config import defaults
from pipelines.config.options import UsageError
from pipelines.config.prepared import PreparedRun, prepare
from pipelines.config.presets import SweepConfig
from pipelines.report import terminal
from pipelines.runtime import cluster, run_directory
from tests.assets.nvidia_smi import card, install
from tests.assets.tiny import make_tiny_model
from tuning.space import config_of

LONG = 700  # tokens of the longest example, and a few


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    make_tiny_model(folder / "Tiny Model")
    records = [{"prompt": f"{i} + 1?", "completion": "x" * (i % 90)} for i in range(1, 900)]
    records.append({"prompt": "long", "completion": "y" * (LONG - 60)})
    (folder / "Chats v2.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    set_machine(monkeypatch)
    return monkeypatch


def set_machine(patch: pytest.MonkeyPatch, fast: str = "bfloat16", **facts: Any) -> None:
    machine = Machine(**{"cores": 8, "free_gib": 64, "fast_dtypes": frozenset({fast}), **facts})
    patch.setattr(hardware, "this_machine", lambda: machine)


def load(folder: Path, *words: str, command: str = "train") -> SweepConfig:
    own = ["--model", str(folder / "Tiny Model"), "--data", str(folder / "Chats v2.jsonl")]
    own += ["--benchmarks", "builtin:target-heldout"] if command == "sweep" else []
    return cli.parse([command, *own, "--output", str(folder / "runs"), *words]).load()


def decided(folder: Path, *words: str, command: str = "train") -> SweepConfig:
    return prepare(load(folder, *words, command=command)).decided.config


def test_what_was_not_given_is_chosen(folder: Path) -> None:
    config = decided(folder)
    train, data = config.train, config.train.data
    assert (train.model.dtype, config.engine.dtype, train.workers.cpus) == ("bfloat16",) * 2 + (8,)
    longest = inspect_corpus(replace(data, sequence_length=1024), train.model).longest
    assert longest <= data.sequence_length < longest + 64 and data.sequence_length % 64 == 0
    rows = len(pack_locally(data, train.model, limit=1000)["input_ids"])
    assert rows / train.global_batch_size >= 50 > rows / train.global_batch_size / 2
    assert train.max_steps == math.ceil(rows / train.global_batch_size)
    assert train.micro_batch_size == train.global_batch_size, "a tiny model fits"
    assert train.optim.warmup_steps <= train.max_steps / 10
    assert train.log_interval <= train.max_steps / 10 < 10
    assert train.optim.lr == 5e-4 and "M weights" in config.chosen["train.optim.lr"]
    assert all(config.chosen.values()) and "1 epoch of" in config.chosen["train.max_steps"]


def test_what_was_given_stays(folder: Path) -> None:
    words = "--train.model.dtype float32 --train.workers.cpus 3 --train.data.sequence-length 1024 "
    words += "--train.global-batch-size 6 --train.micro-batch-size 3 --max-steps 7 "
    words += "--engine.dtype float16 --train.optim.lr 1e-3 --train.optim.warmup-steps 5"
    config = decided(folder, *words.split())
    train = config.train
    assert (train.model.dtype, train.workers.cpus, config.engine.dtype) == ("float32", 3, "float16")
    assert (train.global_batch_size, train.micro_batch_size, train.max_steps) == (6, 3, 7)
    assert train.data.sequence_length == 1024 and train.optim.warmup_steps == 5
    assert {*config.chosen} == {"train.log_interval", "train.eval_interval"}
    half = decided(folder, "--train.model.dtype", "float32")
    assert half.engine.dtype == "float32", "the engine follows training"


@pytest.mark.parametrize(
    ("weights", "rate"),
    [(1.4e6, 5e-4), (135e6, 1e-4), (0.5e9, 6e-5), (8e9, 2e-5), (70e9, 1e-5), (1e12, 1e-5)],
)
def test_the_learning_rate_is_chosen_by_the_number_of_weights(
    folder: Path, machine: pytest.MonkeyPatch, weights: float, rate: float
) -> None:
    machine.setattr("pipelines.config.defaults.count_parameters", lambda model: int(weights))
    config = decided(folder, "--arms", "sft", "dft", "--seeds", "0", command="sweep")
    assert {config_of(config.train, trial).optim.lr for trial in config.trials} == {rate}


@pytest.mark.parametrize("unknown", [None, 0])
def test_a_model_of_unknown_size_gets_a_careful_learning_rate(
    folder: Path, machine: pytest.MonkeyPatch, unknown: int | None
) -> None:
    machine.setattr("pipelines.config.defaults.count_parameters", lambda model: unknown)
    config = decided(folder)
    assert config.train.optim.lr == 1e-5 and "unknown" in config.chosen["train.optim.lr"]
    adapters = decided(folder, "--train.lora.rank", "4")
    assert adapters.train.optim.lr == 1e-4, "whatever the model"


def test_presets_with_their_own_model_and_data_are_left_alone() -> None:
    for preset in ("builtin", "study", "debug"):
        config = cli.parse(["sweep", "--preset", preset]).load()
        assert PreparedRun(config).decided.config is config or not config.chosen
        assert config.train.model.dtype == "float32" and config.train.workers.cpus == 1
    named = cli.parse(["sweep", "--preset", "debug", "--data", "mine.jsonl"]).load()
    assert "train.max_steps" not in named.chosen, "a preset that was named keeps its size"
    assert not cli.parse(["score", "mine"]).load().chosen


def test_a_cpu_without_bfloat16_trains_in_float32_and_calls_the_other_slow(
    folder: Path, machine: pytest.MonkeyPatch
) -> None:
    from pipelines.checks.model import check_training

    set_machine(machine, fast="float16")
    assert decided(folder).train.model.dtype == "float32"
    forced = decided(folder, "--train.model.dtype", "bfloat16")
    assert "bfloat16 (slow: this CPU has no instructions for it" in check_training(forced)
    on_gpu = replace(forced.train, workers=replace(forced.train.workers, gpus=1))
    set_machine(machine, fast="float16", capability=(7, 5))
    with pytest.raises(ValueError, match=r"this GPU has no .*: give --train.model.dtype float32"):
        check_training(replace(forced, train=on_gpu))


def test_the_trials_of_a_sweep_share_cores_and_memory(
    folder: Path, machine: pytest.MonkeyPatch
) -> None:
    def shared(*words: str) -> tuple[int, float]:
        config = decided(folder, *words, command="sweep")
        cpus = cluster.logical_cpus(replace(config, engine=replace(config.engine, num_replicas=1)))
        machine.setattr("os.cpu_count", lambda: 8)
        assert cpus > config.train.workers.cpus, "Ray Data needs one too"
        return config.search.max_concurrent, config.train.workers.cpus

    assert shared() == (8, 1), "ten trials"
    assert shared("--arms", "sft", "otr-k16", "--seeds", "0") == (2, 4)
    assert shared("--arms", "sft", "--seeds", "0", "1", "--workers", "2") == (2, 2)
    alone = ("--arms", "sft", "--seeds", "0", "--search", "optim.lr=loguniform(1e-5,1e-3)")
    alone += ("--search.metric", "loss", "--budget")
    assert shared(*alone, "4 trials") == (4, 2), "those of the search, of which there are more"
    assert shared(*alone, "2 trials") == (2, 4)
    assert shared(*alone, "2 h") == (8, 1), "their number is not known yet"
    set_machine(machine, free_gib=5.5)  # a trial needs more than a gigabyte, Ray and the driver two
    assert shared() == (3, 2)


def test_on_a_cluster_nothing_follows_this_machine(
    folder: Path, machine: pytest.MonkeyPatch
) -> None:
    machine.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = decided(folder, command="sweep")
    assert (config.train.workers.cpus, config.train.model.dtype) == (1, "float32")
    assert config.search.max_concurrent == 0


def test_the_micro_batch_fits_into_free_memory(folder: Path, machine: pytest.MonkeyPatch) -> None:
    words = ("--train.global-batch-size", "64", "--train.data.sequence-length", "1024")
    roomy = decided(folder, *words).train
    assert roomy.micro_batch_size * 1024 == defaults.PASS_TOKENS["CPU"]
    set_machine(machine, free_gib=3.005)
    assert decided(folder, *words).train.micro_batch_size < roomy.micro_batch_size
    assert decided(folder, *words, "--workers", "2").train.micro_batch_size <= 32


def test_epochs_are_converted_into_steps(folder: Path) -> None:
    one, three = decided(folder), decided(folder, "--epochs", "2.5")
    rows = prepare(one).corpus.packed_rows(one.train.data.sequence_length)
    assert rows and three.train.max_steps == math.ceil(2.5 * rows / one.train.global_batch_size)
    assert three.epochs == 2.5 and one.name != three.name
    preset = cli.parse(["sweep", "--preset", "debug", "--epochs", "2"]).load()
    assert preset.chosen == {"train.max_steps": ""} and preset.name.startswith("debug-")


def test_epochs_that_can_not_be_counted(folder: Path, machine: pytest.MonkeyPatch) -> None:
    for line, message in (
        ("--epochs 2 --max-steps 3", "exclude each other"),
        ("--epochs 0", "epochs is 0.0: use a number > 0"),
        ("--epochs nan", "epochs is nan: use a number > 0"),
    ):
        with pytest.raises(UsageError, match=message):
            load(folder, *line.split())
    recipe = folder / "recipe.toml"
    recipe.write_text("epochs = 3")
    assert load(folder, "--config", str(recipe), "--max-steps", "5").epochs == 0
    streamed = replace(inspect_corpus(*corpus_of(folder), limit=10), records=None)
    machine.setattr("otr.training.corpus.inspect_corpus", lambda *_, **__: streamed)
    with pytest.raises(ValueError, match=r"1 epoch of .* unknown .*; give --max-steps"):
        decided(folder)
    assert decided(folder, "--max-steps", "5").train.max_steps == 5


def corpus_of(folder: Path) -> tuple[DataConfig, ModelConfig]:
    data = DataConfig((str(folder / "Chats v2.jsonl"),), sequence_length=1024)
    return data, ModelConfig(str(folder / "Tiny Model"))


def test_a_large_corpus_is_counted_but_not_tokenized(
    folder: Path, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr("otr.training.corpus.BATCH", 200)
    whole = inspect_corpus(*corpus_of(folder))
    part = inspect_corpus(*corpus_of(folder), limit=450)
    assert (part.rows, part.complete, part.records) == (450, False, 900)
    rows, estimate = whole.packed_rows(1024), part.packed_rows(1024)
    assert rows and estimate and abs(estimate - rows) < 0.1 * rows


def test_a_long_example_is_left_out_and_said(folder: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(defaults, "LONGEST", 256)
    config = decided(folder)
    assert config.train.data.sequence_length == 256
    assert "1 longer than 256 are left out" in config.chosen["train.data.sequence_length"]


def test_a_run_goes_on_as_it_began_on_another_machine(
    folder: Path, tmp_path: Path, machine: pytest.MonkeyPatch
) -> None:
    def begin(*words: str) -> SweepConfig:
        config = load(folder, "--output", str(tmp_path), *words)
        run = prepare(config).decided
        config = defaults.with_choices(config, run.config)
        run_directory.open_run(config, run.directory)
        return config

    first = begin("--name", "mine")
    set_machine(machine, cores=2, fast="float16")
    assert begin("--name", "mine") == first
    assert load(folder, "--config", str(tmp_path / "mine" / "run.json")).chosen != first.chosen
    repeated = cli.parse(["train", "--config", str(tmp_path / "mine" / "run.json")]).load()
    assert repeated == first and prepare(repeated).decided.config.train.workers.cpus == 8
    longer = begin("--name", "mine", "--epochs", "2")
    assert longer.train.max_steps > first.train.max_steps and longer.train.workers.cpus == 8


def test_an_unnamed_run_is_called_after_model_and_data(
    folder: Path, machine: pytest.MonkeyPatch
) -> None:
    name = load(folder).name
    assert name.startswith("tiny-model-chats-v2-") and len(name) == len("tiny-model-chats-v2-") + 6
    set_machine(machine, cores=1)
    assert decided(folder).name == name, "whatever the machine"
    assert load(folder, "--train.model.dtype", "float32").name != name
    assert load(folder, command="sweep").name.startswith("tiny-model-chats-v2-")
    line = "--model HuggingFaceTB/SmolLM2-135M-Instruct --data hf:openai/gsm8k:main"
    hub = cli.parse(["train", *line.split()]).load()
    assert hub.name.startswith("smollm2-135m-instruct-gsm8k-")
    odd = cli.parse(["train", "--model", "/", "--data", "x/*.jsonl", "é" * 99 + ".json.gz"]).load()
    assert odd.name.startswith("model-data-")


def test_the_first_lines_say_what_was_chosen_and_warn_of_many_epochs(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    run = prepare(load(folder)).decided
    terminal.print_choices(run.config, corpus=run.corpus)
    said = capsys.readouterr()
    assert re.search(r"[(]\S+ epochs? of the data[)]", said.out) and "warning" not in said.err
    (line,) = (line for line in said.out.splitlines() if "train.workers.cpus" in line)
    assert line.split() == ["train.workers.cpus", "8", "all", "8", "cores"]
    run = prepare(load(folder, "--max-steps", "5000")).decided
    terminal.print_choices(run.config, corpus=run.corpus)
    said = capsys.readouterr()
    assert "warning: 5000 steps are" in said.err and "give --epochs 3" in said.err


def test_dry_run_and_doctor_show_the_choices(folder: Path, capsys: pytest.CaptureFixture) -> None:
    own = ["--model", str(folder / "Tiny Model"), "--data", str(folder / "Chats v2.jsonl")]
    assert cli.main(["train", *own, "--dry-run"]) == 0
    config, _ = json.JSONDecoder().raw_decode(said := capsys.readouterr().out)
    assert config["train"]["model"]["dtype"] == "bfloat16" and "all 8 cores" in said
    cli.main(["doctor", *own])
    assert "this CPU has instructions for it" in capsys.readouterr().out


def test_the_free_memory_of_a_gpu_is_read_without_using_any(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch on this machine has no CUDA, so asking it would fail."""
    machine.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi = install(tmp_path, machine)
    nvidia_smi(card(free=2048), card(free=1024))
    assert defaults._free_gpu_bytes() == GIB
    machine.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert defaults._free_gpu_bytes() == 2 * GIB
