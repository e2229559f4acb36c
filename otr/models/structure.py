"""The parts of a causal language model: trunk, decoder layers, and towers for what is no text.

All functions but `trunk` accept a transformers model with or without peft's adapters.
"""

from torch import nn
from transformers import PreTrainedModel


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformers model inside a peft model, or the model itself."""
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


def trunk(model: PreTrainedModel) -> nn.Module:
    """Return what computes the head's input, of a model without adapters around it.

    Some classes name a base model that they do not have, such as Llama 4's text model.
    """
    if model.base_model is not model:
        return model.base_model
    return next(child for child in model.children() if isinstance(child, PreTrainedModel))


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the longest list of layers in a model, without its towers.

    Raises:
        ValueError: the model has no list of layers.
    """
    outside = {id(module) for tower in towers(model).values() for module in tower.modules()}
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and id(module) not in outside
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of layers to split: use memory.strategy ddp or "
            "single"
        )
    return max(lists, key=len)


def towers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that text does not pass through, by name: vision and audio towers.

    These are the children of the model, and of its trunk, beside the text decoder, embeddings and
    head. A model that is a text decoder itself has none.
    """
    whole = without_adapters(model)  # type: ignore[arg-type]  # a plain module is returned as it is
    if not isinstance(whole, PreTrainedModel):
        return {}
    decoder, base = whole.get_decoder(), trunk(whole)
    if decoder is base or decoder is whole or not isinstance(decoder, PreTrainedModel):
        return {}
    used = (decoder, whole.get_output_embeddings(), whole.get_input_embeddings())
    known = {id(parameter) for module in used for parameter in module.parameters()}
    names = {id(module): name for name, module in whole.named_modules()}
    return {
        names[id(child)]: child
        for child in (*whole.children(), *base.children())
        if child is not base and any(id(p) not in known for p in child.parameters())
    }
