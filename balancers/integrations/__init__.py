"""Pieces that connect balancers to other people's frameworks, one module for each framework.

A module here needs its framework, so nothing else in `balancers` imports it: import the one that you use.
"""
