"""What a model's published config says, without the model: no import of `otr.models.load`'s."""

from transformers import AutoConfig, PretrainedConfig

from otr.config import ModelConfig, TrainConfig


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's config.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no model config at {config.path!r}: {reason}") from error


def max_positions(config: ModelConfig) -> int | None:
    """Tokens that the longest example may have; None where the model's config sets no limit.

    Positions restart with each example, so that a row of several may be longer. Where the config
    stretches rotary positions (YaRN, say), the stretched length counts.

    Raises:
        ValueError: there is no config of a model.
    """
    text = load_architecture(config).get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if most is None or rope.get("rope_type", "default") == "default":
        return most
    before = rope.get("original_max_position_embeddings") or most
    return max(most, int(before * (rope.get("factor") or 1)))


def check_sequence_length(config: TrainConfig) -> int | None:
    """That the longest example of a run has a position for each token; returns how many there are.

    Raises:
        ValueError: it has not, or there is no config of a model.
    """
    most, length = max_positions(config.model), config.data.sequence_length
    if most is not None and length > most:
        raise ValueError(
            f"data.sequence_length is {length}, but {config.model.path!r} has {most} positions: "
            f"give --train.data.sequence-length {most} or less"
        )
    return most
