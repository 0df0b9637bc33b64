"""List the methods and the problems, and draw their pictures."""
