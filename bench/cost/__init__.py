"""What a balancer costs: the time, arithmetic and memory of a training step.

- `subject`, `training`, `contenders`, `timing` and `count` are what is measured, and how; `compare` puts them together.
- `step` measures the methods of a suite; `own` is ``lossbench cost``, on a user's own model.
- ``python -m bench.cost`` makes the limits table (`limits`, on `cases` that `networks` are part of, beside their
  `bounds`), the figure of `growth`, and the ratio under ``torch.compile`` (`compiled`).
- `gradient_norm` is a micro-benchmark of GradNorm's own part, and `micro` its table.
"""
