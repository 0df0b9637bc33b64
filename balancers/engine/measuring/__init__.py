"""Measurements of the tasks' gradients with respect to shared parameters: norms, inner products, the gradients."""
