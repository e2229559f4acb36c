"""Hugging Face causal language models and their tokenizers, made ready for training."""
