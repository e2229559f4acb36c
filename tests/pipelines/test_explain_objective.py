"""`otr explain`: what is printed and drawn of an objective, of all, and of one that is new."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties, findfont

from otr.loss.objective import Objective, kind_of, names
from pipelines import cli
from pipelines.explain_objective import chosen
from pipelines.report import plot_style

ROOT = Path(__file__).parents[2]
(TILT,) = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
)
EXPLAIN_TILT = """
import sys
import tilt  # registers it
from pipelines import cli
from tests.assets import objective_table

assert not cli.main(["explain", "--figure", sys.argv[1]])
assert not cli.main(["explain", "tilt", "--train.objective.most", "0.25"])
print("\\n".join(objective_table.lines()))
"""


def said(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["explain", *words.split()]) == 0
    return capsys.readouterr().out


def test_all_objectives_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    out = said("", capsys)
    first, second = out.split("\n\n")[:2]
    weights = {line.split()[0]: line.split() for line in first.splitlines() if " ▁" in line}
    assert weights["dft"][1:] == [
        *("0.001", "0.010", "0.050", "0.100", "0.250", "0.500", "0.750", "0.900", "0.990"),
        "▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▇▇▇██",
    ]
    stars = re.findall(r"^ (\w+) \*", first, re.MULTILINE)
    assert stars == ["eaft", "idft", "otr"], "they depend on more than p(y)"
    for name in names():
        assert re.search(rf"^ {name} ", first, re.MULTILINE)
        assert re.search(rf"^ {name} ", second, re.MULTILINE)


@pytest.mark.parametrize("name", names())
def test_an_objective_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(name, capsys)
    kind = kind_of(name)
    for text in (kind.loss, kind.gradient, kind.meaning, kind.helps, kind.hurts, kind.arxiv):
        assert text in out
    assert kind.helps and kind.hurts
    assert f"{kind.example.loss:.4f}" in out and f"{kind.example.gradient:.4f}" in out


def test_settings_change_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    def at_half(words: str) -> list[str]:
        (line,) = re.findall(r"^ 0\.5 (.*)$", said(words, capsys), re.MULTILINE)
        return re.findall(r"[-\d.]+", line)

    assert at_half("otr") == ["0.550", "0.400", "0.252"], "with 1, 20 and 1,000 other tokens"
    assert at_half("otr --train.objective.temperature 1") == ["0.550"]
    assert at_half("power --train.objective.exponent 2") == ["0.250"]
    out = said("threshold sft --train.objective.threshold 0.6", capsys)
    assert re.search(r"^ threshold +(0.000 +){6}(1.000 +){3}", out, re.MULTILINE)
    assert re.search(r"^ sft +(1.000 +){9}", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("oft", "objective.name is 'oft': did you mean 'sft'?"),
        (
            "sft --train.objective.temperature 1",
            "--train.objective.temperature is a setting of otr",
        ),
        ("otr --train.objective.temperature 0", "objective.temperature is 0.0: use a number > 0"),
    ],
)
def test_what_cannot_be_explained_ends_with_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", *words.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_a_setting_goes_to_the_objectives_that_have_it() -> None:
    assert chosen(["clipped", "sft"], {"threshold": 0.3}) == [
        Objective("clipped", threshold=0.3),
        Objective("sft"),
    ]
    assert [each.name for each in chosen([], {})] == names()


def test_a_new_objective_is_explained_drawn_and_in_the_tables(tmp_path: Path) -> None:
    """The one that CONTRIBUTING shows, in a module outside of otr."""
    (tmp_path / "tilt.py").write_text(TILT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXPLAIN_TILT, tmp_path / "figure.svg"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^ tilt +0\.001 +0\.010 +0\.053 +0\.111", done.stdout, re.MULTILINE)
    assert "tilt: tilt, most 0.25" in done.stdout
    assert re.search(r"^ 0\.9 +0\.250 ", done.stdout, re.MULTILINE)
    assert "| `tilt` | -w log p(y) | w (p - e_y) |" in done.stdout
    assert ">tilt</text>" in (tmp_path / "figure.svg").read_text()


def test_the_figure_of_the_docs_is_what_its_command_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with plot_style.matplotlib.rc_context(plot_style._RC):
        font = Path(findfont(FontProperties())).stem
    if font != "DejaVuSans":
        pytest.skip(f"the layout depends on the font, which is {font} here")
    said(f"--figure {tmp_path / 'figure.svg'}", capsys)
    drawn, stored = (
        re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path.read_text())
        for path in (tmp_path / "figure.svg", ROOT / "docs" / "concepts" / "objectives.svg")
    )
    assert drawn == stored, "run: otr explain --figure docs/concepts/objectives.svg"
    assert ElementTree.fromstring(drawn) is not None
    for color in re.findall(r"var\((--c-\w+), #", drawn):
        assert f"{color}: #" in drawn, "on a dark page it has another one"
    assert not re.search(r"(stroke|fill): #[0-9a-f]{6}", drawn)
