"""The version of the library and of the package ``lossbench``."""

__version__ = "0.1.0"
