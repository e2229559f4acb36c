"""Push a model or a LoRA adapter to the Hugging Face hub, with a model card.

python pipelines/push_checkpoint.py CHECKPOINT REPO
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.serving.adapters import CONFIG_FILE
from pipelines import _compat
from pipelines.report.model_card import is_local_base, model_card
from pipelines.runtime import console

if TYPE_CHECKING:
    from pipelines.config.commands import Push

CARD = "README.md"
TOKEN = "HF_TOKEN"
_OWN = {"run.json", "MLmodel", "components", "trainer"}
"""Files and folders that only otr and MLflow read."""


def run(command: "Push") -> int:
    """Push the checkpoint; return the exit code.

    Raises:
        ValueError: see `push`.
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


def push(
    checkpoint: str | Path, repo: str, *, private: bool = False, everything: bool = False
) -> str:
    """Upload a model or an adapter in one commit; return the commit's address.

    The repository is created if there is none. Its model card is written unless the checkpoint or
    the repository has one.

    Args:
        checkpoint: Hugging Face directory, or LoRA adapter.
        repo: USER/NAME on the hub, or NAME.
        private: create the repository as a private one; no effect if it exists.
        everything: also upload run.json and what training resumes from.

    Raises:
        ValueError: there is no token, the checkpoint is no model or is damaged, or the hub does not
            answer or refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    checkpoint = Path(checkpoint).absolute()
    token = os.environ.get(TOKEN, "")
    if not token:
        raise ValueError(f"no token for the hub: set {TOKEN} to one that may write")
    check_can_be_pushed(checkpoint)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _one_line(repo):
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        operations = [
            CommitOperationAdd(str(path.relative_to(checkpoint)), str(path))
            for path in files_to_push(checkpoint, everything=everything)
        ]
        if not (checkpoint / CARD).is_file() and not api.file_exists(name, CARD):
            card = model_card(checkpoint, name.rpartition("/")[2])
            operations.append(CommitOperationAdd(CARD, card.encode()))
        message = f"Upload {checkpoint.name} with otr"
        return api.create_commit(name, operations, commit_message=message).commit_url


def check_can_be_pushed(checkpoint: Path) -> None:
    """Check that a directory is a complete model or adapter.

    Raises:
        ValueError: files are missing or damaged, or the check when it was written failed.
    """
    from otr.loop.checkpoint import TRAINER, UNVERIFIED, check_checkpoint  # imports torch

    weights = any(checkpoint.glob("*.safetensors"))
    if not (weights and any((checkpoint / n).is_file() for n in ("config.json", CONFIG_FILE))):
        raise ValueError(
            f"no model in {checkpoint}: give a directory with *.safetensors and config.json, or "
            f"{CONFIG_FILE} for an adapter"
        )
    if (checkpoint / UNVERIFIED).is_file():
        raise ValueError(f"{checkpoint} failed its check (see {UNVERIFIED}): push another one")
    if (checkpoint / TRAINER).is_dir():
        check_checkpoint(checkpoint)


def files_to_push(checkpoint: Path, *, everything: bool) -> list[Path]:
    """Return the files of a checkpoint that are uploaded, in alphabetical order."""

    def wanted(path: Path) -> bool:
        parts = path.relative_to(checkpoint).parts
        own = parts[0] in _OWN and not everything
        return path.is_file() and not own and not any(part.startswith(".") for part in parts)

    return sorted(filter(wanted, checkpoint.rglob("*")))


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Turn the errors of the hub's client into a `ValueError` of one line, without the token.

    Xet, which uploads large files, raises errors of its own.
    """
    from huggingface_hub.errors import HfHubHTTPError

    others: tuple[type[Exception], ...] = (*_compat.hub_errors(), RuntimeError)
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        remedy = {
            401: f"the hub does not know the token in {TOKEN}",
            403: f"the token in {TOKEN} may not write to it",
        }.get(code, _first_line(error))
        raise ValueError(f"{repo} was not pushed: {remedy} ({code})") from error
    except others as error:
        raise ValueError(f"{repo} was not pushed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"hf_\w+", "hf_...", text)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["push", *sys.argv[1:]]))
