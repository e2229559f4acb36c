"""The packed store: a corpus as packed rows on disk, and the order in which training takes them.

Read these in order: `layout` (what lies on disk), `write` (Ray Data makes it), `read` (rows in
memory-mapped files), `order` (which row comes when), `feed` (a worker's micro-batches). Beside
them, `version` (when a store is another one) and `statistics` (values per token).
"""
