"""The problem ``scenes``: rooms drawn at random, rendered, and read by a network."""

from .scenes_problem import Scenes

__all__ = ["Scenes"]
