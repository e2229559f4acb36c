"""The identity of a run: the settings and data that decide its outcome.

A run may only resume under an equal identity. It is a flat dict of dotted config keys, plus
fingerprints of the model's weights and of the corpus files, and is stored as JSON.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otr.config import DataConfig, ModelConfig, TrainConfig
from otr.loss.objective import own_settings, setting_defaults

DIGEST_PIECES = 16  # of a large file, evenly spaced, that a digest covers
WEIGHT_BYTES = 64 * 2**10  # of each weight file that a digest covers
_FREE = (
    "memory.",
    "workers.",
    "deterministic",
    "micro_batch_size",
    "log_interval",
    "eval_interval",
    "checkpoint_interval",
    "checkpoint_minutes",
    "save_dtype",
    "data.validation",
    "data.max_rejected",
    "data.skip_bad",
    "data.paths",  # the identity holds the files' contents instead
    "model.trust_remote_code",
    "model.attention",
)
"""Dotted keys, or prefixes of them, that may change when a run resumes."""
ORDER = 2
"""Version of the order in which a run takes its rows. 1, before 0.3: shuffled in windows."""
LENGTH = "max_steps"
"""Dotted key of the length, which may grow."""


def identity(config: TrainConfig, corpus: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return what decides a run's outcome, as JSON values by dotted key.

    Args:
        config: the run.
        corpus: for each corpus file, values that identify its content.
    """
    settings = {key: value for key, value in flatten(config).items() if not key.startswith(_FREE)}
    # The name alone: a model that was moved is the same model.
    settings["model.path"] = str(settings["model.path"]).rstrip("/").rpartition("/")[2]
    settings["model.weights"] = model_weights(Path(config.model.path))
    settings["model.chat_template"] = chat_template_digest(config.model.chat_template)
    settings["model.add_tokens"] = added_tokens_digest(config.model.add_tokens)
    return settings | {"data.files": [[*file] for file in corpus], "data.order": ORDER}


def model_weights(model: Path) -> list[list[Any]] | None:
    """Return name, size and digest of each weight file in a directory; None for a hub name."""
    if not model.is_dir():
        return None
    paths = sorted(model.glob("*.safetensors"))
    return [[path.name, path.stat().st_size, sampled_digest(path, WEIGHT_BYTES)] for path in paths]


def chat_template_digest(template: str) -> str:
    """Return a digest of a chat template's text, whether given or in a file; else its name."""
    try:
        return _text_digest(template, is_text="{%" in template or "{{" in template)
    except OSError:  # the name of one of otr's own, or empty
        return template


def added_tokens_digest(tokens: str) -> str:
    """Return a digest of tokens, one per line, whether given or in a file; "" of an empty name."""
    return _text_digest(tokens, is_text="\n" in tokens) if tokens else ""


def _text_digest(given: str, is_text: bool) -> str:
    """Return a digest of a text, or of the content of the file that `given` names."""
    content = given.encode() if is_text else Path(given).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def sampled_digest(path: str | Path, max_bytes: int) -> str:
    """Return a digest of a file: of all bytes, or of at most `max_bytes` in evenly spaced pieces.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        count, length = (
            (1, size) if size <= max_bytes else (DIGEST_PIECES, max_bytes // DIGEST_PIECES)
        )
        for piece in range(count):
            file.seek((size - length) * piece // max(1, count - 1))
            digest.update(file.read(length))
    return digest.hexdigest()[:16]


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], directory: str) -> None:
    """Compare a run's identity with the one it started with; the run may have become longer.

    Args:
        before: the stored identity.
        now: the identity of the run that is to resume.
        directory: of the run, for the message.

    Raises:
        ValueError: they differ (the message names the keys with both values), or the run took its
            data in another order.
    """
    if before.get("data.order") != ORDER:
        raise ValueError(
            f"{directory} holds a run of another version of otr, which took the data in another "
            "order: go on from its last checkpoint in a new run, with another --name and "
            f"--model {directory}/step-..."
        )
    before, now = _with_all_settings(before), _with_all_settings(now)
    # A run from before an option existed did what its default does.
    defaults = flatten(TrainConfig(ModelConfig("-"), DataConfig(("-",))))
    added = {key: value for key, value in defaults.items() if key in now and key not in before}
    before = added | dict(before)
    pairs = [
        (key, before.get(key), now.get(key))
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not (key == LENGTH and before.get(key, math.inf) < now.get(key, 0))
    ]
    if pairs:
        changes = "; ".join(
            f"{key} was {_shortened(old, new)}, is {_shortened(new, old)}"
            for key, old, new in pairs
        )
        raise ValueError(
            f"{directory} holds a run with other settings ({changes}): restore them, or use "
            "another name"
        )


def _with_all_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with the settings of all objectives; those without effect are defaults."""
    prefix = "objective."
    own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    every = {prefix + key: value for key, value in setting_defaults().items()} if own else {}
    others = {k: v for k, v in settings.items() if not k.startswith(prefix)}
    return every | others | {prefix + key: value for key, value in own_settings(own).items()}


def flatten(config: Any) -> dict[str, Any]:
    """Return every setting of a config by its dotted key; tuples become lists."""

    def leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            if isinstance(inner, Mapping) and key not in ("columns", "chat_template_args"):
                yield from leaves(inner, f"{prefix}{key}.")
            else:
                yield prefix + key, [*inner] if isinstance(inner, tuple) else inner

    return dict(leaves(asdict(config), ""))


def _shortened(value: Any, other: Any) -> str:
    """Return a value's text, at most 80 characters; of two lists of files only what differs.

    Files differ by name and size, or else by digest.
    """
    if value and other and isinstance(value, list) and isinstance(value[0], list):
        known = [file[:2] for file in other]
        different = [file for file in value if file[:2] not in known]
        value = different or [file for file in value if file not in other] or value
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
