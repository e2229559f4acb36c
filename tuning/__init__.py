"""Sweeps of training runs under Ray Tune: search space, resources, trial, sweep."""
