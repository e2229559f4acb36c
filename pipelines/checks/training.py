"""Whether a model can be trained as configured: told before it is tried.

In: a resolved configuration. Out: a line that tells what was found, or a ValueError with the
remedy. Of the model only its config is read, and no more is imported than what was asked for needs.
"""

from otr.config import ModelConfig, TrainConfig
from pipelines.config.presets import SweepConfig


def training(config: SweepConfig) -> str:
    """The model has the attention, the positions, the adapters and the layers that are asked for.

    Raises:
        ValueError: it has not.
    """
    from otr.models.architecture import check_sequence_length

    train = config.train
    most = check_sequence_length(train)
    told = [f"rows of {train.data.sequence_length} of {most or 'any number of'} positions"]
    if train.model.attention != "auto":
        told.append(_attention(train.model))
    if train.lora.rank:
        told.append(f"{_trained(train)} weights in adapters")
    if train.memory.strategy.startswith("fsdp"):
        told.append(f"split into {_layers(train.model)} layers")
    return ", ".join(told)


def _trained(train: TrainConfig) -> int:
    from otr.models.load import empty_model
    from otr.models.lora import add_adapters

    adapters = add_adapters(empty_model(train.model), train.lora)
    return sum(p.numel() for p in adapters.parameters() if p.requires_grad)


def _layers(model: ModelConfig) -> int:
    from otr.models.load import empty_model
    from otr.models.parts import decoder_layers

    return len(decoder_layers(empty_model(model)))


def _attention(model: ModelConfig) -> str:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from otr.models.load import empty_model

    name = model.attention
    known = {"auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    known = {one for one in known if "|" not in one and not one.startswith("otr_")}
    if name not in known and "/" not in name:  # with one it is a kernel on the hub
        raise ValueError(f"model.attention is {name!r}: use one of {', '.join(sorted(known))}")
    if name.startswith("flash") and model.dtype == "float32":
        raise ValueError(f"{name} has no float32: give --train.model.dtype bfloat16")
    empty_model(model)  # which transformers refuses if it can't have it
    return name
