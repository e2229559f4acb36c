"""The model card (README.md) of a checkpoint that is pushed to the Hugging Face hub.

It names models and data, never a path of this machine.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.serving.adapters import CONFIG_FILE
from pipelines.report import leaderboard
from pipelines.report.leaderboard import BASE, Entry, percent

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_card(checkpoint: Path, title: str) -> str:
    """Return the card of a checkpoint, as Markdown with the hub's metadata at its head.

    Base model, objective and data are those of the checkpoint's run.json; scores are those of the
    sweep's leaderboard.json, if the checkpoint lies in the directory of a sweep.

    Args:
        checkpoint: directory of a model or an adapter.
        title: name of the model.
    """
    from huggingface_hub import ModelCardData

    config = _read(checkpoint / "run.json").get("config", {})
    adapter = (checkpoint / CONFIG_FILE).is_file()
    base = config.get("model", {}).get("path", "")
    if adapter:
        base = _read(checkpoint / CONFIG_FILE).get("base_model_name_or_path") or base
    data = ModelCardData(
        base_model=base if _is_hub_name(base) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["otr", *(["lora"] if adapter else [])],
    )
    kind = "LoRA adapter of" if adapter else "model fine-tuned from"
    about = f"A {kind} `{_name(base)}`." if base else f"A {kind} another one."
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", about]
    parts += [_settings(config)] if config else []
    parts += _scores(checkpoint)
    return "\n\n".join(parts) + "\n"


def is_local_base(checkpoint: Path) -> bool:
    """Return whether an adapter names its base model by a path, which others do not have."""
    base = _read(checkpoint / CONFIG_FILE).get("base_model_name_or_path")
    return bool(base) and not _is_hub_name(str(base))


def _settings(config: Mapping[str, Any]) -> str:
    objective = config["objective"]
    data = ", ".join(f"`{_name(path)}`" for path in config["data"]["paths"])
    rows = {
        "objective": ", ".join(f"{key} {value}" for key, value in objective.items()),
        "data": data,
        "learning rate": f"{config['optim']['lr']:g}",
        "steps": f"{config['max_steps']} of {config['global_batch_size']} rows of "
        f"{config['data']['sequence_length']} tokens",
        "seed": config["seed"],
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| training | |", "|---|---|", *lines])


def _scores(checkpoint: Path) -> list[str]:
    """Return the table of scores; nothing if the checkpoint was not scored by its sweep."""
    trial, directory = checkpoint.parent.parent, checkpoint.parent.parent.parent.parent
    try:
        entries = leaderboard.read(directory / "leaderboard.json")
    except ValueError:
        return []
    found = [e for e in entries if e.trial == trial.name and _is_at(e, checkpoint)]
    if not found or not found[0].scores:
        return []
    base = next((entry.scores for entry in entries if entry.arm == BASE), {})
    rows = [
        f"| {task} | {_cell(base.get(task))} | {_cell(score)} | {score['num_examples']} |"
        for task, score in found[0].scores.items()
    ]
    head = ["| benchmark | base model | this model | items |", "|---|---|---|---|"]
    return ["Scores in % [95 % interval]:", "\n".join([*head, *rows])]


def _cell(score: Mapping[str, Any] | None) -> str:
    return percent((score["value"], score["low"], score["high"])) if score else ""


def _is_at(entry: Entry, checkpoint: Path) -> bool:
    return entry.checkpoint is not None and Path(entry.checkpoint).name == checkpoint.name


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _name(path: str) -> str:
    """Return the name of a model or a data source: of a path its last part."""
    if path.startswith("hf:") or _is_hub_name(path):
        return path.removeprefix("hf:")
    return path.rstrip("/").rpartition("/")[2]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
