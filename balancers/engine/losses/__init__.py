"""Losses: how they are given, what is warned of, and what a logger is told."""
