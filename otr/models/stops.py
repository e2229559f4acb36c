"""Where generation stops: at the tokens that answers were trained to end with.

A base model's files name the token that ends its texts. Trained on conversations, the model learns
the one that ends a turn, and would answer on and on if the files of a checkpoint did not name it.

Shapes: B packed rows, S tokens per row.
"""

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otr.files import write_json
from otr.models.structure import without_adapters

LEAST_SHARE = 0.05  # of the answers that end with a token, for generation to stop at it
GENERATION = "generation_config.json"
_EXAMPLE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def count_ends(batch: Mapping[str, Tensor]) -> Counter[int]:
    """Count the last tokens of all trained stretches of a packed batch, [B, S] per column."""
    mask_BS, segments_BS = batch["loss_mask"], batch["segment_ids"]
    goes_on_BS = torch.zeros_like(mask_BS)
    goes_on_BS[:, :-1] = mask_BS[:, 1:] & (segments_BS[:, 1:] == segments_BS[:, :-1])
    return Counter(batch["input_ids"][mask_BS & ~goes_on_BS].tolist())


def ending_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of the tokens that may end an answer: those that are no part of a text."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def trained_stops(ends: Mapping[int, int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which generation is to stop, the most frequent first.

    Args:
        ends: count of each token that ended a trained stretch, see `count_ends`.
        tokenizer: of the model.
    """
    known, total = ending_tokens(tokenizer), sum(ends.values())
    return [
        token
        for token, count in sorted(ends.items(), key=lambda pair: -pair[1])
        if token in known and count >= LEAST_SHARE * total
    ]


def write_stops(directory: Path, stops: list[int], model: PreTrainedModel) -> None:
    """Add tokens to the end tokens in a checkpoint's generation_config.json, in front.

    Args:
        directory: the checkpoint. If it is an adapter, the base model's file is written there.
        stops: see `trained_stops`.
        model: the model that was trained.
    """
    path = directory / GENERATION
    if path.exists():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        generation = getattr(without_adapters(model), "generation_config", None)
        content = generation.to_diff_dict() if generation is not None else {}
    before = content.get("eos_token_id")
    if before is None:
        before = without_adapters(model).config.get_text_config().eos_token_id
    listed = before if isinstance(before, list) else [] if before is None else [before]
    wanted = [*stops, *(token for token in listed if token not in stops)]
    content["eos_token_id"] = wanted if len(wanted) > 1 else wanted[0]
    write_json(path, content)


def with_stop(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose `eos_token` is one of the stops, if its template writes no other.

    Args:
        tokenizer: stays as it is.
        stops: see `trained_stops`; not empty.
    """
    if tokenizer.eos_token_id in stops:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    return changed if _rendered(changed) == _rendered(tokenizer) else tokenizer


def _rendered(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.apply_chat_template(_EXAMPLE, tokenize=False)
    except Exception as error:  # a template raises what it likes
        return str(error)
