"""Merge a LoRA adapter into the weights of its base model."""

import json
from pathlib import Path


def merge(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Path:
    """Write the full model of an adapter, if it predicts as the adapter does; return its directory.

    The directory appears only when it is complete. It holds the merged weights, the tokenizer and
    the chat template, and run.json where the checkpoint has one.

    Args:
        checkpoint: directory with adapter_model.safetensors and adapter_config.json.
        out: directory to write.
        dtype: of the written weights: float32, bfloat16 or float16; "auto" is the base model's. The
            weights are added in float32 in any case.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: there is no adapter, its base model is missing or does not fit, `out` exists, or
            see `otr.models.lora.merged_model`.
    """
    import torch  # takes seconds, as do the next lines
    from transformers import GenerationConfig

    from otr import ModelConfig, load_tokenizer, save_checkpoint
    from otr.models.architecture import load_architecture
    from otr.models.lora import base_path, merged_model
    from otr.models.stops import GENERATION

    checkpoint, out = Path(checkpoint), Path(out).absolute()
    base = base_path(checkpoint)
    if out.exists():
        raise ValueError(f"{out} exists: choose another directory, or remove it")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"the base model of the adapter in {checkpoint} is not at {base}: set "
            "base_model_name_or_path in adapter_config.json to its directory"
        )
    tokenizer_dir = str(checkpoint) if (checkpoint / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(ModelConfig(tokenizer_dir, trust_remote_code=trust_remote_code))
    base_config = ModelConfig(base, trust_remote_code=trust_remote_code)
    model = merged_model(checkpoint, base_config)
    kept = load_architecture(base_config).dtype if dtype == "auto" else getattr(torch, dtype)
    torch.nn.Module.to(model, kept or torch.float32)
    if (checkpoint / GENERATION).is_file():  # where generation stops
        model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    run_file = checkpoint / "run.json"
    run = json.loads(run_file.read_text()) if run_file.is_file() else None
    return save_checkpoint(out, model, tokenizer, run=run)
