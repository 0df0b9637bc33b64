"""Define how numbers, labels, figures and the terminal look."""
