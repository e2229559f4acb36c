"""The stages of a run: compare corpus and benchmarks, train, score, check the served model."""
