"""The number of parameters of a model, without its weights."""

from contextlib import suppress
from pathlib import Path

from evals.hardware import count_weights
from pipelines import _compat


def count_parameters(model: str) -> int | None:
    """Return the number of parameters of a model directory or of a model on the hub.

    Reads the headers of safetensors files. None if the hub does not answer or does not know, or a
    file is damaged.
    """
    if not Path(model).is_dir():
        return _count_parameters_on_hub(model)
    with suppress(ValueError):  # the model check reports it
        return count_weights(Path(model))
    return None


def _count_parameters_on_hub(model: str) -> int | None:
    from huggingface_hub import model_info

    try:
        weights = model_info(model, timeout=10).safetensors
    except _compat.hub_errors():  # offline or unknown: the model check reports that
        return None
    return weights.total if weights else None
