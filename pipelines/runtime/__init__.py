"""The Ray cluster of a run, signals, and what is printed on the terminal."""
