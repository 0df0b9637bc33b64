"""One call of a balancer and its backward pass: what a step measures, and how a window's passes are put together."""
