"""Hooks of the documentation site: the help of each command becomes part of its page.

A line `{{ otr COMMAND }}` in a page stands for what `otr COMMAND --help` prints.
"""

import os
import re
import subprocess
import sys
from typing import Any

from mkdocs.exceptions import PluginError

COMMAND = re.compile(r"^\{\{ (otr[\w ]*) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **page: Any) -> str:
    """Replace each `{{ otr COMMAND }}` by the command's help."""
    return COMMAND.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)


def help_of(command: str) -> str:
    """Return what `COMMAND --help` prints, without colours, 100 columns wide."""
    words = [sys.executable, "-m", "pipelines.cli", *command.split()[1:], "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PluginError(f"`{command} --help` failed:\n{done.stderr}")
    return done.stdout
