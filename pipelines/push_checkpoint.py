"""Push a model or a LoRA adapter to the Hugging Face hub, with a model card.

python pipelines/push_checkpoint.py CHECKPOINT REPO
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.report.model_card import is_local_base
from pipelines.runtime import console
from pipelines.stages.push import push

if TYPE_CHECKING:
    from pipelines.config.commands import Push


def run(command: "Push") -> int:
    """Push the checkpoint; return the exit code.

    Raises:
        ValueError: see `pipelines.stages.push.push`.
    """
    from huggingface_hub.utils import disable_progress_bars

    with console.stage("push", command.repo):
        disable_progress_bars()
        url = push(
            command.checkpoint,
            command.repo,
            private=command.private,
            everything=command.everything,
        )
    if is_local_base(Path(command.checkpoint)):
        console.note(
            "the adapter names its base model by a path that others do not have: set "
            "base_model_name_or_path in its adapter_config.json to a name on the hub, then push "
            "again"
        )
    console.say(f"pushed: {url}")
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["push", *sys.argv[1:]]))
