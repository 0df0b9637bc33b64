"""One call of a balancer and its backward pass: what a step measures, and how a window's passes are put together.

It does not know what a method does with measurements: it hands them to the balancer.
"""
