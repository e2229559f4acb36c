"""Checks before a run: machine, memory, model, cluster."""
