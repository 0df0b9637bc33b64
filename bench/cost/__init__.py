"""What a balancer costs: the time, arithmetic and memory of a training step, and GradNorm's own part of it."""
