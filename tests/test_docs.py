"""The documents: every command in them can be parsed, every file in them exists, Python runs."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from tests.assets import chat_template_table, objective_table
from tests.assets.chat_templates import of_family

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
CODE = re.compile(r"`((?:otr|evals|tuning|pipelines|tests)/[\w./-]*\w)`")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, without comments, variables replaced by their values."""
    if block.startswith("# not tested"):
        return []
    found, values = [], {}
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and (given := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
            values[given[1]] = given[2]
        elif words:
            found.append([values.get(w[1:], w) if w.startswith("$") else w for w in words])
    return found


def check(words: list[str]) -> None:
    """Raise unless a command could be run here."""
    program, *rest = words
    if program == "make":
        assert set(rest) <= TARGETS, f"no such make target: {words}"
    elif program == "otr":
        cli.parse(rest)  # ends with SystemExit where it is wrong
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"no such module: {words}"
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), f"no such file: {words}"
    else:
        assert program in ("source", "export"), f"mark the block as not tested: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page(page: Path) -> None:
    for block in blocks(page, "bash"):
        for words in commands(block):
            check(words)
    missing = [name for name in CODE.findall(page.read_text()) if not (ROOT / name).exists()]
    assert not missing


def test_wrong_commands_are_seen() -> None:
    assert commands("# not tested: no account\nray up x") == []
    assert commands("M=a/b\notr train --model $M \\\n    --dry-run # look") == [
        ["otr", "train", "--model", "a/b", "--dry-run"]
    ]
    for wrong in (["make", "tset"], ["python", "-m", "tests.benchmarks.los"], ["ray", "up"]):
        with pytest.raises(AssertionError):
            check(wrong)
    with pytest.raises(SystemExit):
        check(["otr", "train", "--modle", "x"])


def test_python_in_the_guides(tmp_path: Path) -> None:
    (example,) = [b for b in blocks(ROOT / "docs/how-to/own-trainer.md", "python") if "randn" in b]
    (writes,) = blocks(ROOT / "docs/quickstart.md", "python")
    for source in (example, writes):
        subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True)
    records = [json.loads(line) for line in (tmp_path / "chats.jsonl").open()]
    assert len(records) == 100 and records[0]["messages"][1] == {
        "role": "assistant",
        "content": "0",
    }


def test_python_that_reads_a_packed_store(tmp_path: Path) -> None:
    (source,) = blocks(ROOT / "docs/concepts/data.md", "python")
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 9)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "'input_ids': torch.Size([8, 256])" in done.stdout


def test_json_in_the_guides_is_read(tmp_path: Path) -> None:
    """The records shown in "Your data" are usable, those in "Your own benchmark" load."""
    from evals import tasks
    from otr.data import tokenize

    records = [json.loads(block) for block in blocks(ROOT / "docs/how-to/data.md", "json")]
    done = tokenize(records, of_family("qwen3"), columns={}, sequence_length=5000)
    assert not done.rejected and set(done.numbers) == set(range(len(records))) != set()
    assert not done.unused.keys() - {"name of tool messages"} and not done.remarks
    (lines,) = blocks(ROOT / "docs/how-to/own-benchmark.md", "json")
    (tmp_path / "mine.jsonl").write_text(lines)
    assert len(tasks.load(f"file:{tmp_path / 'mine.jsonl'}").items) == 3


def test_the_table_of_chat_templates_is_what_its_command_prints() -> None:
    page = (ROOT / "docs/reference/chat-templates.md").read_text()
    assert page.endswith("\n" + "\n".join(chat_template_table.lines()) + "\n")


def test_the_tables_of_objectives_are_what_their_command_prints() -> None:
    page = (ROOT / "docs/concepts/objectives.md").read_text()
    for table in "\n".join(objective_table.lines()).split("\n\n"):
        assert f"\n{table}\n" in page


@pytest.mark.integration
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    options = (tmp_path / "reference" / "commands" / "index.html").read_text()
    assert "--train.objective.num-samples" in options
    assert "linear_token_loss" in (tmp_path / "reference" / "api" / "index.html").read_text()
