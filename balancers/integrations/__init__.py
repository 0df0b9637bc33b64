"""Pieces that connect balancers to other people's frameworks, one module for each framework.

Those for physics-informed networks share `physics_checks`. A module here needs its framework, so nothing else in
`balancers` imports it: import the one that you use.
"""
