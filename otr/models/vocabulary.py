"""Tokens that are added to a model's vocabulary.

Shapes: V rows of the embeddings, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otr.config import ModelConfig
from otr.models.tokenizer import load_tokenizer

MULTIPLE = 64
"""A vocabulary whose number of rows was padded to a multiple of it stays so."""


@torch.no_grad()
def add_embeddings(model: PreTrainedModel, config: ModelConfig) -> None:
    """Give each token that `config.add_tokens` adds a row in the embeddings and in the head.

    Its first values are the mean of the known tokens' rows (Hewitt, "Initializing new word
    embeddings for pretrained language models", 2021). Rows are added only if the padding of the
    vocabulary has too few. A checkpoint of such a run has the rows already, and is left as it is.

    Args:
        model: changed in place; may be on the meta device.
        config: of the model.
    """
    known = len(load_tokenizer(replace(config, add_tokens="")))
    wanted = len(load_tokenizer(config))
    if wanted == known:
        return
    rows = len(_weight(model.get_input_embeddings()))
    if wanted > rows:
        padded = -(-wanted // MULTIPLE) * MULTIPLE
        model.resize_token_embeddings(wanted if rows % MULTIPLE else padded, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        values: list[Tensor | None] = [_weight(layer), getattr(layer, "bias", None)]
        for value_VD in values:
            if value_VD is not None:
                value_VD[known:wanted] = value_VD[:known].mean(0)
        _weight(layer)[max(rows, wanted) :] = 0.0  # padding


def _weight(layer: torch.nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
