"""Presets, recipes, command-line options and run.json: everything that makes a `SweepConfig`."""
