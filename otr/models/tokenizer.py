"""Loading a model's tokenizer, which is much faster to import than `otr.models.load`."""

from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from otr.config import ModelConfig


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ValueError: it cannot be loaded, or has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no tokenizer at {config.path!r}: give a Hugging Face directory or hub name ({reason})"
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {config.path!r} has no chat template: add chat_template.jinja"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)
