"""`otr doctor`: each problem is found, and reported in one line with a remedy."""

import json
import shutil
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.settings import free_port
from otr.config import LoraConfig
from otr.models.lora import count_adapter_weights
from pipelines import cli
from pipelines.checks import machine, preflight
from pipelines.checks.findings import Finding
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.model_size import count_parameters
from pipelines.tracking.tracker import check_store
from tests.assets.tiny import make_tiny_model
from tuning.settings import SearchSettings
from tuning.space import Trial


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def config(model: Path, tmp_path: Path) -> SweepConfig:
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(20)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = tmp_path / "mine.jsonl"
    benchmark.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    start = PRESETS["debug"]()
    columns = {"prompt": "question", "completion": "answer"}
    return replace(
        start,
        output=str(tmp_path / "runs"),
        engine=replace(start.engine, port=free_port()),
        benchmarks=(f"file:{benchmark}",),
        train=replace(
            start.train,
            model=replace(start.train.model, path=str(model)),
            data=replace(
                start.train.data,
                paths=(str(data),),
                columns=columns,
                validation=(),
                sequence_length=64,
            ),
        ),
    )


def check(
    config: SweepConfig, *, with_ray: bool = False, skip: Sequence[str] = ()
) -> dict[str, Finding]:
    """Every finding, by the name of its check."""
    found = preflight.check(PreparedRun(config), with_ray=with_ray, skip=skip)
    return {finding.check: finding for finding in found}


def failed(config: SweepConfig, *, with_ray: bool = False) -> Finding:
    """The only finding that is not ok."""
    (bad,) = (f for f in check(config, with_ray=with_ray).values() if not f.ok)
    assert "\n" not in bad.text
    return bad


def with_data(config: SweepConfig, **changes: Any) -> SweepConfig:
    return replace(config, train=replace(config.train, data=replace(config.train.data, **changes)))


def with_model(config: SweepConfig, path: Path) -> SweepConfig:
    model = replace(config.train.model, path=str(path))
    return replace(config, train=replace(config.train, model=model))


def test_nothing_is_wrong(config: SweepConfig) -> None:
    findings = check(config, with_ray=True)
    assert [f.text for f in findings.values() if not f.ok] == []
    assert set(findings) >= {"model", "data", "benchmarks", "disk", "port", "Ray"}
    preflight.require(PreparedRun(config))


def test_missing_data(config: SweepConfig, tmp_path: Path) -> None:
    bad = failed(with_data(config, paths=(str(tmp_path / "nothing.jsonl"),)))
    assert bad.check == "data" and "nothing.jsonl" in bad.text
    with pytest.raises(ValueError, match=r"nothing\.jsonl"):
        preflight.require(PreparedRun(with_data(config, paths=(str(tmp_path / "nothing.jsonl"),))))


def test_unknown_column(config: SweepConfig) -> None:
    columns = {"prompt": "qestion", "completion": "answer"}
    bad = failed(with_data(config, columns=columns))
    assert bad.check == "data" and "qestion" in bad.text and "'question'" in bad.text


def test_a_line_that_is_no_json_is_named(config: SweepConfig, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    good = '{"question": "1 + 1", "answer": "2"}'
    path.write_text("\n".join([good, "", good, good[:-2], good]))
    bad = failed(with_data(config, paths=(str(path),)))
    assert (
        bad.check == "data"
        and f"the first: {path}, line 4, broken, the record is no JSON" in bad.text
    )


def test_validation_data_is_checked_too(config: SweepConfig, tmp_path: Path) -> None:
    bad = failed(with_data(config, validation=(str(tmp_path / "missing.jsonl"),)))
    assert bad.check == "data" and "missing.jsonl" in bad.text


def test_unknown_and_missing_benchmark(config: SweepConfig, tmp_path: Path) -> None:
    bad = failed(replace(config, benchmarks=("gsm8",)))
    assert bad.check == "benchmarks" and "gsm8k" in bad.text
    bad = failed(replace(config, benchmarks=(f"file:{tmp_path}/none.jsonl",)))
    assert bad.check == "benchmarks" and "none.jsonl" in bad.text


def test_model_without_tokenizer_template_weights(
    config: SweepConfig, model: Path, tmp_path: Path
) -> None:
    for file, name, said in (
        ("tokenizer*", "model", "no tokenizer"),
        ("chat_template.jinja", "data", "no chat template: give --chat-template FILE"),
        ("*.safetensors", "model", "no weights"),
        ("config.json", "model", "config"),
    ):
        broken = tmp_path / file.strip("*.")
        shutil.copytree(model, broken)
        for path in broken.glob(file):
            path.unlink()
        finding = check(with_model(config, broken))[name]
        assert not finding.ok and said in finding.text, file


def test_damaged_weights(config: SweepConfig, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    bad = failed(with_model(config, broken))
    assert bad.check == "model" and "a pointer of Git LFS" in bad.text


def test_vocabulary_mismatch(config: SweepConfig, model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(model, small)
    settings = json.loads((small / "config.json").read_text()) | {"vocab_size": 100}
    (small / "config.json").write_text(json.dumps(settings))
    bad = failed(with_model(config, small))
    assert bad.check == "model" and "259 tokens" in bad.text and "100 embeddings" in bad.text


def test_an_arm_with_an_impossible_setting(config: SweepConfig) -> None:
    trials = (Trial("bad", {"objective.num_samples": 0}),)
    assert "arms.bad: objective.num_samples is 0" in failed(replace(config, trials=trials)).text
    trials = (Trial("bad", {"objective.num_sample": 4}),)
    assert "objective.num_samples" in failed(replace(config, trials=trials)).text


def test_disk_too_small(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1)
    )
    bad = failed(config)
    assert bad.check == "disk" and "too little disk space: 0.0 GiB free" in bad.text


def test_disk_counts_each_trials_checkpoint(config: SweepConfig, model: Path) -> None:
    count = sum(p.numel() for p in __import__("otr").load_model(config.train.model).parameters())
    assert count_parameters(str(model)) == count


def test_disk_counts_adapters_by_their_own_size(config: SweepConfig) -> None:
    config = replace(config, train=replace(config.train, checkpoint_minutes=0))

    def trials_bytes(**lora: Any) -> int:
        train = replace(config.train, lora=LoraConfig(**lora))
        return machine._bytes_of_trials(replace(config, train=train)) or 0

    count = count_parameters(config.train.model.path) or 0
    q = 4 * (64 + 64)  # rank x (in + out), in each of two layers
    weights = count_adapter_weights(config.train.model, LoraConfig(4, targets=("q_proj",)))
    assert weights == 2 * q
    assert trials_bytes() == 12 * count * 2, "two trials"
    assert trials_bytes(rank=4, targets=("q_proj",)) == 12 * 2 * q * 2
    for kind in ({"dora": True}, {"quantize": "nf4"}, {"modules_to_save": ("norm",)}):
        lora = LoraConfig(4, **kind)
        size = count_adapter_weights(config.train.model, lora)
        assert trials_bytes(rank=4, **kind) == 12 * size * 2 + 2 * 4 * count, "merged to be scored"
    mixed = replace(config.trials[0], overrides={"lora.rank": 4})
    found = machine._bytes_of_trials(replace(config, trials=(mixed, *config.trials[1:]))) or 0
    assert 12 * count + 4 * count < found < 12 * 2 * count + 4 * count


def test_disk_counts_checkpoints_by_time_and_their_data_type(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials_bytes(**changes: Any) -> int:
        train = replace(config.train, **changes)
        return machine._bytes_of_trials(replace(config, train=train)) or 0

    count = count_parameters(config.train.model.path) or 0
    assert len(config.trials) == 2
    once = trials_bytes(checkpoint_minutes=0)
    assert once == 12 * count * 2
    assert trials_bytes(checkpoint_minutes=0, save_dtype="bfloat16") == once - 2 * 10 * count
    monkeypatch.setattr(machine, "trials_at_once", lambda config, trials: 1)
    by_time = 12 * count * (2 + 2)
    assert trials_bytes(checkpoint_minutes=1) == by_time, "one has finished, and one trains"
    validation = replace(config.train.data, validation=config.train.data.paths)
    with_best = 12 * count * (2 * 2 + 2)
    assert trials_bytes(checkpoint_minutes=1, data=validation) == with_best
    assert trials_bytes(max_steps=1) == once, "there is only the last one"
    config = replace(config, search=SearchSettings("asha", "loss"))
    assert trials_bytes(checkpoint_minutes=1) == 12 * count * 2 * 3, "each may be stopped"


def test_disk_counts_the_trials_of_a_search(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those, only the ones that run at once have checkpoints."""
    count = count_parameters(config.train.model.path) or 0
    space = {"objective.temperature": "choice(1,1.3)"}
    search = SearchSettings(space=space, budget="5 trials", metric="loss")
    searching = replace(config, search=search, trials=config.trials[-1:])
    monkeypatch.setattr(machine, "this_machine", lambda: SimpleNamespace(cores=3))
    assert machine._bytes_of_trials(searching) == 12 * count * 3
    assert machine.bytes_of_search(config) == 0
    assert machine.bytes_of_search(searching) == 12 * count * 3 * 3, "three cores"
    monkeypatch.setattr(machine, "this_machine", lambda: SimpleNamespace(cores=64))
    assert machine.bytes_of_search(searching) == 12 * count * 3 * 5, "five trials"
    free = 12 * count * 3 * 2 + machine._BASE_BYTES
    usage = shutil._ntuple_diskusage(2 * free, free, free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="too little disk space"):
        machine.check_disk(searching)
    machine.check_disk(replace(searching, search=replace(search, max_concurrent=2)))
    adapters = replace(
        searching,
        train=replace(config.train, lora=LoraConfig(4)),
        search=replace(search, space={"lora.rank": "choice(4,16)"}),
    )
    weights = count_adapter_weights(config.train.model, LoraConfig(16))
    assert machine.bytes_of_search(adapters) == 12 * weights * 3 * 5, "of the largest ones"


def test_disk_counts_a_model_on_the_hub_if_the_hub_answers(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub = with_model(config, Path("someone/large"))
    disk = check(on_hub)["disk"]
    assert disk.ok and "needed: unknown" in disk.text  # tests are offline
    large = SimpleNamespace(safetensors=SimpleNamespace(total=10**13))
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, timeout: large)
    disk = check(on_hub)["disk"]
    assert not disk.ok and "too little disk space" in disk.text


def test_skipped_checks_do_not_run(config: SweepConfig) -> None:
    broken = with_data(config, paths=("nothing.jsonl",))
    names = set(check(broken, skip=("data",)))
    assert names and "data" not in names
    preflight.require(PreparedRun(broken), skip=("data",))


def test_an_engine_with_more_positions_than_the_model(config: SweepConfig, model: Path) -> None:
    engine = replace(config.engine, max_model_len=1025)
    bad = failed(replace(config, engine=engine))
    assert bad.check == "engine" and "--engine.max-model-len is 1025" in bad.text
    assert "1024 positions" in bad.text and "--engine.max-model-len 1024" in bad.text


def test_a_benchmark_whose_answers_do_not_fit_the_model_or_the_cache(
    config: SweepConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(config, engine=replace(config.engine, max_model_len=0))
    run = PreparedRun(auto)
    longest = max(benchmark.decoding.max_tokens for benchmark in run.benchmarks)
    found = {f.check: f for f in preflight.check(run, with_ray=False)}["engine"]
    assert found.ok and longest < run.engine.max_model_len < 1024
    assert found.text.startswith(f"context length {run.engine.max_model_len} of at most 1024")
    monkeypatch.setattr("otr.models.architecture.max_positions", lambda model: longest)
    bad = failed(auto)
    assert bad.check == "engine" and f"the model has {longest} positions: leave the" in bad.text
    monkeypatch.undo()
    bad = failed(replace(auto, engine=replace(auto.engine, kv_cache_gib=1e-4)))
    assert bad.check == "engine" and "give --engine.kv-cache-gib 1 or" in bad.text


def test_a_stretched_rope_has_more_positions(
    config: SweepConfig, model: Path, tmp_path: Path
) -> None:
    stretched = tmp_path / "stretched"
    shutil.copytree(model, stretched)
    settings = json.loads((stretched / "config.json").read_text())
    settings["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    (stretched / "config.json").write_text(json.dumps(settings))
    longer = replace(config, engine=replace(config.engine, max_model_len=2048))
    assert all(finding.ok for finding in check(with_model(longer, stretched)).values())


def test_scoring_never_runs_a_models_own_code(config: SweepConfig) -> None:
    trusting = replace(config.train.model, trust_remote_code=True)
    trusting_config = replace(config, train=replace(config.train, model=trusting))
    bad = failed(trusting_config)
    assert bad.check == "engine" and "--train.model.trust-remote-code" in bad.text


def test_port_in_use(config: SweepConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.engine.port))
        taken.listen()
        bad = failed(config)
    assert (
        bad.check == "port"
        and f"port {config.engine.port}" in bad.text
        and "--engine.port" in bad.text
    )


def test_store_that_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.tracker._LOCK_SECONDS", 0.1)
    path = tmp_path / "mlflow.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE a (b)")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"mlflow\.db cannot be used .*locked"):
        check_store(f"sqlite:///{path}")
    holder.close()
    assert check_store(f"sqlite:///{path}") == str(path)


def test_store_of_another_schema(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("CREATE TABLE alembic_version (version_num TEXT)")
        store.execute("INSERT INTO alembic_version VALUES ('from_the_future')")
    with pytest.raises(ValueError, match="has schema from_the_future, this MLflow writes"):
        check_store(f"sqlite:///{path}")


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but text long enough for a header" * 50)
    with pytest.raises(ValueError, match="cannot be used"):
        check_store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_the_command(config: SweepConfig, capsys: pytest.CaptureFixture) -> None:
    line = ["--preset", "debug", "--model", config.train.model.path, "--output", config.output]
    line += ["--data", *config.train.data.paths, "--columns", "prompt=question"]
    line += ["completion=answer", "--benchmarks", *config.benchmarks]
    line += ["--engine.port", str(config.engine.port)]
    assert cli.main(["doctor", *line]) == 0
    assert cli.main(["doctor", *line, "--data", "nowhere.jsonl"]) == 1
    table = capsys.readouterr().out
    assert "FAILED" in table and "nowhere.jsonl" in table.replace("\n", "")
    assert not Path(config.output).exists(), "doctor writes nothing"


def test_a_ray_of_another_version(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        bad = failed(config, with_ray=True)
    assert bad.check == "Ray" and "Ray: 2.9.0" in bad.text and ray.__version__ in bad.text
    assert "unset RAY_ADDRESS" in bad.text and "\n" not in bad.text


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no.such.host:{}"])
def test_a_cluster_that_is_gone(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def hang(*arguments: Any, **options: Any) -> None:
        raise AssertionError("ray.init would try for minutes")

    monkeypatch.setattr("ray.init", hang)
    address = address.format(free_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    bad = failed(config, with_ray=True)
    assert bad.check == "Ray" and f"RAY_ADDRESS is {address}" in bad.text
    assert "can't connect" in bad.text and "unset RAY_ADDRESS" in bad.text
