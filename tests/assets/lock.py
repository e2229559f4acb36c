"""Write requirements-gpu.txt: `make lock`, or python -m tests.assets.lock.

uv resolves requirements.txt, and what the extra `gpu` of pyproject.toml adds to it, for Linux on
x86-64 with Python 3.11. It reads the metadata of packages and downloads none of them. Pins that the
file has already stay as far as they are possible; remove a line to get the newest version.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = "requirements-gpu.txt"
SOURCES = ("requirements.txt", "pyproject.toml")
UV = "uv==0.13.9"
_OPTIONS = [
    *("--extra", "gpu", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
    *("--no-annotate", "--quiet", "--custom-compile-command", "make lock", "--output-file", LOCK),
]
OFFLINE = ("Failed to fetch", "error sending request", "dns error", "Network is unreachable")


def installed_uv(directory: Path) -> str:
    """Return the path of uv; install it into `directory` if there is none.

    Raises:
        OSError: pip can't install it.
    """
    if found := shutil.which("uv"):
        return found
    words = ["install", "--quiet", "--no-deps", "--target", str(directory), UV]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"pip can't install {UV}: {done.stderr.strip()[-300:]}")
    return str(directory / "bin" / "uv")


def resolve(uv: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Resolve the sources in a directory into the lock file there."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    environment = os.environ | ({"UV_DEFAULT_INDEX": index} if index else {})
    words = [uv, "pip", "compile", *SOURCES, *_OPTIONS]
    return subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = resolve(installed_uv(Path(folder)), ROOT)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
