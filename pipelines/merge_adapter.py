"""Merge a LoRA adapter into its base model and write a full Hugging Face directory.

python pipelines/merge_adapter.py CHECKPOINT OUT
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.runtime import console, next_steps
from pipelines.stages.merge import merge

if TYPE_CHECKING:
    from pipelines.config.commands import Merge


def run(command: "Merge") -> int:
    """Merge the adapter; return the exit code.

    Raises:
        ValueError: see `pipelines.stages.merge.merge`.
    """
    from transformers.utils.logging import disable_progress_bar  # takes a second

    with console.stage("merge", command.checkpoint):
        disable_progress_bar()
        out = merge(
            command.checkpoint,
            command.out,
            dtype=command.dtype,
            trust_remote_code=command.trust_remote_code,
        )
    from otr.models.lora import base_path, base_quantization  # imports peft

    if base_quantization(command.checkpoint) != "none":
        console.say(
            "merged into the weights that the 4 bits of its base model stand for, as in training; "
            f"they differ from those of {base_path(command.checkpoint)} by the rounding to 4 bits"
        )
    console.say(f"model: {next_steps.display_path(out)}")
    next_steps.print_next_steps(("score it", next_steps.pipeline_command("score_checkpoint", out)))
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["merge", *sys.argv[1:]]))
