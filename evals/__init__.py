"""Scores for Hugging Face model directories: benchmarks, vLLM serving, grading and statistics."""

from evals import _deprecated

_deprecated.install_moved_modules()
