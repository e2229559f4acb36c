"""Files of a multimodal model's processor, which training does not use and checkpoints keep."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import cached_file

from otr.models.structure import towers

FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)


def copy_processor(model: PreTrainedModel, directory: str | Path) -> None:
    """Copy the processor's files, of a model with vision or audio towers, to a directory.

    They are taken from where the model was loaded: a directory, or the hub.
    """
    if not towers(model) or not model.name_or_path:
        return
    for name in FILES:
        found = cached_file(
            model.name_or_path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found and Path(found).parent.resolve() != Path(directory).resolve():
            shutil.copyfile(found, Path(directory) / name)
