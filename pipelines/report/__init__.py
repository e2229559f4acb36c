"""Leaderboard, tables, figures and the HTML report."""
