"""The stages of a run: compare with the benchmarks, train, score, check the served model."""
