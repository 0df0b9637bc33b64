"""The problem ``scenes``: dense prediction on rendered pictures of random rooms."""

from .scenes_problem import Scenes

__all__ = ["Scenes"]
