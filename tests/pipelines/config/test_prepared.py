"""Names of models: directories, models in the cache, and a hub that does not answer."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from otr import ModelConfig, load_tokenizer
from pipelines import cli
from pipelines.checks.preflight import check_benchmarks
from pipelines.config.prepared import prepare
from pipelines.config.presets import PRESETS
from tests.assets.tiny import make_tiny_model
from tuning.settings import SearchSettings

REPOSITORY = Path(__file__).parents[3]


def run(tmp_path: Path, *words: str) -> tuple[int, str]:
    """Run `otr` with a hub that refuses connections; return exit code and stderr."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_hub_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    (tmp_path / "data.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n')
    line = ["sweep", "--dry-run", "--model", "someone/tiny", "--data", "data.jsonl"]
    line += ["--benchmarks", "builtin:target-heldout"]
    code, said = run(tmp_path, *line)
    assert code == 1 and "Traceback" not in said
    assert "the Hugging Face hub does not answer" in said
    assert said.count("error: ") == 1 and "'someone/tiny'" in said
    code, said = run(tmp_path, "score", "someone/tiny", "--output", "runs")
    assert code == 1 and "Traceback" not in said
    assert "error: no model 'someone/tiny': not a directory, and not on" in said
    cached = tmp_path / "hf/hub/models--someone--tiny"
    make_tiny_model(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    code, said = run(tmp_path, *line)
    assert code == 0, said


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["train", "--data", "hf:someone/chats", "--dry-run"], "no data set 'hf:someone/chats'"),
        (["score", "model", "--benchmarks", "gsm8k"], "cannot load data set openai/gsm8k"),
        (["train", "--preset", "gsm8k", "--dry-run"], "cannot load data set openai/gsm8k"),
    ],
)
def test_a_data_set_on_a_hub_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], missing: str
) -> None:
    """Its client alone would try each file six times, with two lines for each."""
    monkeypatch.delenv("OTR_BENCHMARKS", raising=False)
    make_tiny_model(tmp_path / "model")
    code, said = run(tmp_path, *words, "--output", "runs")
    lines = [line for line in said.splitlines() if not line.startswith("WARNING")]
    assert code == 1 and "Retry" not in said, said
    assert "the Hugging Face hub does not answer" in lines[0]
    assert missing in lines[-1] and said.count("error: ") == 1


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/model", "model.bin"])
def test_a_model_directory_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").touch()
    assert cli.main(["score", name]) == 1
    said = capsys.readouterr().err
    shown = os.path.expanduser(name)
    assert f"error: no model {shown!r}: there is no such directory" in said


def test_builtin_benchmarks_take_samples_and_options(tmp_path: Path) -> None:
    names = (
        "builtin:target-heldout@2:temperature=0.5",
        "builtin:function-harder#target-harder@2",
        "gsm8k:max_tokens=9",
    )
    run = prepare(replace(PRESETS["debug"](), benchmarks=names, output=str(tmp_path)))
    file, named, other = run.config.benchmarks
    assert file.endswith("target-heldout.jsonl@2:temperature=0.5") and other == names[2]
    assert named.endswith("function-harder.jsonl#target-harder@2")
    with pytest.raises(ValueError, match='did you mean "max_tokens"'):
        prepare(replace(run.config, benchmarks=("builtin:target-heldout:max_token=9",)))


@pytest.mark.parametrize(
    ("benchmark", "shared"),
    [
        ("builtin:validation-questions", ""),
        ("builtin:target-heldout", "shares 8 of its 8 items with --benchmarks target-heldout "),
        ("builtin:target-heldout@2:items=1-50", "shares 2 of its 8 items"),
        ("builtin:target-heldout:items=2-9", ""),  # the leaderboard's 8 items are 1, 26, ...
    ],
)
def test_a_search_decides_by_items_that_the_result_is_not_reported_on(
    tmp_path: Path, benchmark: str, shared: str
) -> None:
    start = replace(PRESETS["debug"](), output=str(tmp_path))
    run = prepare(replace(start, search=SearchSettings("asha", "answers", benchmark)))
    if shared:
        with pytest.raises(ValueError, match=shared) as error:
            check_benchmarks(run)
        assert "gsm8k:items=201-1319" in str(error.value), "the remedy"
    else:
        assert "for the search" in check_benchmarks(run)
        assert run.judge is not None and len(run.judge.items) == 8


def test_a_base_model_is_asked_with_the_template_of_the_configuration(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role + '> ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant> ' + style }}{% endif %}"
    )
    settings = ModelConfig(
        str(model),
        chat_template=str(tmp_path / "mine.jinja"),
        chat_template_args={"style": "brief"},
    )
    config = PRESETS["debug"]()
    config = replace(
        config, output=str(tmp_path / "runs"), train=replace(config.train, model=settings)
    )
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    run = prepare(config)
    assert run.example_prompt.endswith("assistant> brief")
    assert not run.directory.exists(), "nothing is written before the run begins"
    asked = load_tokenizer(ModelConfig(str(run.model_dir)))
    assert (
        asked.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
        == "user> hi<|im_end|>assistant> brief"
    )
    assert run.model_dir == prepare(config).model_dir == run.directory / "base_model"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    weights = run.model_dir / "model.safetensors"
    assert weights.is_symlink() and weights.read_bytes() == before["model.safetensors"]
