"""Values that change when the content of a packed store would change.

They come from file sizes and times, tags of object stores, commits of the hub and the code; no text
is read for them.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from otr.config import ModelConfig, TrainConfig
from otr.loop.identity import added_tokens_digest, chat_template_digest, model_weights
from otr.training.sources import SourceChunk

CODE = (
    *("data", "models/tokenizer.py", "training/audit.py", "training/corpus.py"),
    *("training/sources", "training/store"),
)
TAG_KEYS = {"ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime"}
"""Keys under which fsspec's file systems tell that a file was written again."""
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model", ".py")


def digest(value: Any) -> str:
    """Return a digest of a JSON value, 32 characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def of_text(chunks: Sequence[SourceChunk]) -> list[Any]:
    """Return a value that changes when the text of some chunks does, as far as can be told."""
    versions: list[Any] = []
    for chunk in chunks:
        found: Any = None
        with suppress(OSError, ValueError, ImportError):  # reading the chunk reports the error
            found = _of_dataset(chunk.path) if chunk.kind == "hub" else _of_file(chunk.path)
        versions.append([*asdict(chunk).values(), found])
    return versions


def of_model(model: ModelConfig) -> list[Any]:
    """Return a value that changes when the tokenizer, its chat template or the code does."""
    tokens = added_tokens_digest(model.add_tokens)
    template = [chat_template_digest(model.chat_template), model.chat_template_args, tokens]
    return [_of_tokenizer(model), model.trust_remote_code, template, _of_code()]


def of_start(config: TrainConfig) -> list[Any]:
    """Return a value that changes when the predictions of the model that a run starts from do."""
    model = config.model
    weights = model_weights(Path(model.path)) or _of_tokenizer(model)
    return [weights, model.dtype, added_tokens_digest(model.add_tokens), config.lora.quantize]


def _of_file(path: str) -> list[str]:
    fs, inner = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        stat = os.stat(inner)
        # Not the inode: a shared directory may number its files differently on each host.
        return [str(stat.st_size), str(stat.st_mtime_ns)]
    fs.invalidate_cache(inner)
    info = fs.info(inner)
    return sorted(f"{key} {info[key]}" for key in info if key in TAG_KEYS | {"size"})


def _of_dataset(path: str) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(path.removeprefix("hf:").partition(":")[0]).sha


def _of_tokenizer(model: ModelConfig) -> list[Any]:
    """Return digests of a directory's tokenizer files, or the commit of a hub model.

    Raises:
        ValueError: there is no tokenizer.
    """
    folder = Path(model.path)
    if folder.is_dir():
        found = [path for path in sorted(folder.iterdir()) if path.suffix in TOKENIZER_FILES]
        return [(path.name, _of_content(path, path.stat().st_mtime_ns)) for path in found]
    from huggingface_hub import try_to_load_from_cache

    from otr.models.tokenizer import load_tokenizer  # imports transformers

    load_tokenizer(model)  # into the cache
    config = try_to_load_from_cache(model.path, "tokenizer_config.json")
    return [model.path, Path(config).parent.name if isinstance(config, str) else None]


@functools.lru_cache
def _of_content(path: Path, mtime_ns: int) -> str:
    """Return a digest of the content: copies of a model differ in their times, not in it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.lru_cache
def _of_code() -> str:
    """Return a digest of the modules and packages that decide the packed rows."""
    found = hashlib.sha256()
    for name in CODE:
        path = Path(__file__).parents[2] / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            found.update(file.read_bytes())
    for package in ("transformers", "tokenizers", "jinja2"):
        found.update(metadata.version(package).encode())
    return found.hexdigest()
