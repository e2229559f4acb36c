"""The method's Ray edge: corpus, workers, and the one place that builds a trainer."""
