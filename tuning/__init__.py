"""Ray Tune over the one driver: search space, trial, sweep."""
