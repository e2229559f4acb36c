"""Hugging Face causal language models and their tokenizers, made ready for training."""

import logging

# On CPUs with AVX512-BF16, bitsandbytes warns at import, which peft does, of a missing package that
# only inference would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
