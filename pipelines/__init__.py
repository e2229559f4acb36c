"""The commands of `otr`, and what only they need: configuration, checks, tracking, reports."""
