"""One run: its specification, its training, its log, and its result on disk."""
