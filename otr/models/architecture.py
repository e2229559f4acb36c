"""What a model's config.json says, without the slow import of the model's code."""

from transformers import AutoConfig, PretrainedConfig

from otr.config import ModelConfig, TrainConfig


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """Load a model's config.

    Raises:
        ValueError: there is no config at the path, or its type is unknown.
    """
    try:
        return AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no model config at {config.path!r}: {reason}") from error


def max_positions(config: ModelConfig) -> int | None:
    """Return the number of tokens that the longest example may have; None if there is no limit.

    Positions restart with each example, so a packed row may be longer. If the config extends rotary
    positions, for example with YaRN, the extended length counts.

    Raises:
        ValueError: the model's config cannot be loaded.
    """
    text = load_architecture(config).get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if most is None or rope.get("rope_type", "default") == "default":
        return most
    original = rope.get("original_max_position_embeddings") or most
    return max(most, int(original * (rope.get("factor") or 1)))


def check_sequence_length(config: TrainConfig) -> int | None:
    """Check that the model has a position for each token of the longest possible example.

    Returns:
        The number of positions; None if there is no limit.

    Raises:
        ValueError: the sequence length is larger, or the model's config cannot be loaded.
    """
    most, length = max_positions(config.model), config.data.sequence_length
    if most is not None and length > most:
        raise ValueError(
            f"data.sequence_length is {length}, but {config.model.path!r} has {most} positions: "
            f"give --train.data.sequence-length {most} or less"
        )
    return most
