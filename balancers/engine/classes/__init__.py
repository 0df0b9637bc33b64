"""The classes that methods are subclasses of: that of all balancers, and those that read gradients or residuals."""
