"""Measurements of the tasks' gradients with respect to shared parameters: norms, inner products, the gradients.

It knows neither balancers nor forks: it gets features, gradients at them and parameters.
"""
