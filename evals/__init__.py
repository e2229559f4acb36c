"""Scoring of Hugging Face model directories: tasks, grading, code sandbox, statistics, engine."""
