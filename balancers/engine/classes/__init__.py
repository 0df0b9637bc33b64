"""The classes that methods are subclasses of, from `LossBalancer` on, and what these do around a step.

That is: what a pass makes of measurements (`decision`), a weighting put before another, what users are warned of, and
what a logger is told.
"""
