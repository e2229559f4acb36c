"""Training under Ray: the corpus as packed rows, the workers, and the driver of a run."""
