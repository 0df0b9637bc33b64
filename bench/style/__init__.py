"""How numbers, labels, figures and the terminal look."""
