"""How many of a run's newest checkpoints stay; the one that is best by validation stays too."""

RETAINED = 2
"""While a run trains, and after it was stopped or has failed: the older one is for the case that
the newest is damaged."""
RETAINED_AT_END = 1
"""Once a run has finished."""
RETAINED_FOR_CALLBACKS = 3
"""While a run trains and a callback reads the reported checkpoint: two more may be written
meanwhile, since Ray Train holds one report per worker in its queue, and the one after it waits."""
