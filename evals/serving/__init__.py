"""vLLM behind Ray Serve: one warm engine that serves checkpoint after checkpoint."""
