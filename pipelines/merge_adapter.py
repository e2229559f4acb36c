"""Make a full model of a LoRA adapter.

In: a checkpoint of a run with adapters, or any peft directory. Out: a Hugging Face directory with
merged weights, tokenizer and chat template, which all else takes; whole or not at all.

    python pipelines/merge_adapter.py CHECKPOINT OUT
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Merge:
    """What to merge, and where to: otr merge CHECKPOINT OUT."""

    checkpoint: str = ""
    """Directory with adapter_model.safetensors and adapter_config.json."""
    out: str = ""
    """Directory to be made."""
    trust_remote_code: bool = False
    """Run code that came with the model."""


def main(argv: Sequence[str]) -> int:
    """Merge what the first argument names into what the second one names."""
    from pipelines.config import options
    from pipelines.runtime import console, next_steps

    words: list[str] = []
    for option, word in zip(("--checkpoint", "--out"), argv, strict=False):
        if word.startswith("-"):
            break
        words += [option, word]
    words += argv[len(words) // 2 :]
    given = options.simple(Merge, words, "otr merge")
    if not (given.checkpoint and given.out):
        raise options.UsageError("give two directories: otr merge CHECKPOINT OUT")
    with console.stage("merge", given.checkpoint):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        out = merge(given.checkpoint, given.out, trust_remote_code=given.trust_remote_code)
    console.say(f"model: {next_steps.display_path(out)}")
    next_steps.print_next_steps(("score it", next_steps.pipeline_command("score_checkpoint", out)))
    return 0


def merge(checkpoint: str | Path, out: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Write the full model; returns its directory.

    Raises:
        ValueError: there is no adapter, its base model can't be had or does not fit, or `out` is
            already there.
    """
    from otr import ModelConfig, load_tokenizer, save_checkpoint
    from otr.models.lora import base_path, load_adapters, merge_adapters

    checkpoint, out = Path(checkpoint), Path(out).absolute()
    base = base_path(checkpoint)
    if out.exists():
        raise ValueError(f"{out} is already there: give another directory, or remove it")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"the model of the adapter in {checkpoint} is not at {base}: write where it is into "
            "adapter_config.json, as base_model_name_or_path"
        )
    holder = str(checkpoint) if (checkpoint / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(ModelConfig(holder, trust_remote_code=trust_remote_code))
    model = merge_adapters(
        load_adapters(checkpoint, ModelConfig(base, trust_remote_code=trust_remote_code))
    )
    told = checkpoint / "run.json"
    run = json.loads(told.read_text()) if told.is_file() else None
    return save_checkpoint(out, model, tokenizer, run=run)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["merge", *sys.argv[1:]]))
