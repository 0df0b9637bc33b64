"""Losses: how they are given, what is warned of, and what a logger is told.

It knows neither methods nor gradients, but for the warnings, which ask the balancer that they are for.
"""
