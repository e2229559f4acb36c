"""The stages of a run: compare corpus and benchmarks, train, score, measure, check the engine."""
