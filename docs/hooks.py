"""Hooks of the documentation site.

A line `{{ otr COMMAND }}` in a page stands for what `otr COMMAND --help` prints, and a line
`{{ file NAME }}` for a Markdown file at the root of the project.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^\{\{ (otr[\w ]*) \}\}$", re.MULTILINE)
FILE = re.compile(r"^\{\{ file ([\w.]+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **page: Any) -> str:
    """Replace the placeholders in a page."""
    markdown = FILE.sub(lambda found: text_of(found[1]), markdown)
    return COMMAND.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)


def text_of(name: str) -> str:
    """Return a Markdown file of the root, its links as seen from docs/."""
    return (ROOT / name).read_text().replace("](docs/", "](")


def help_of(command: str) -> str:
    """Return what `COMMAND --help` prints, without colours, 96 columns wide."""
    words = [sys.executable, "-m", "pipelines.cli", *command.split()[1:], "--help"]
    environment = {**os.environ, "COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise PluginError(f"`{command} --help` failed:\n{done.stderr}")
    return done.stdout
