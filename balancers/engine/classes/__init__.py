"""The classes that methods are subclasses of, from `LossBalancer` on, and what these do around a step.

Beside them, `decision` combines the gradients of a pass, `prior_weighting` puts a weighting before another method,
`training_warnings` has what users are warned of, and `scalars` the names and numbers for loggers.
"""
