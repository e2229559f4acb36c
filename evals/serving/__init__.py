"""vLLM behind Ray Serve: one warm engine that serves one checkpoint after another."""
