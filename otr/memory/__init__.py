"""How much memory a run needs, computed before it starts."""
