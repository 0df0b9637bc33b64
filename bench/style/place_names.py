"""Name the places at which gradients are measured."""

PLACE_NAMES = {"features": "features", "layer": "last shared layer", "parameters": "all shared parameters"}
"""For tables, by the words of ``default_wrt``."""
