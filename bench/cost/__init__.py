"""Measure what a balancer adds to a training step: time, arithmetic and memory.

- `subject`, `training_step`, `timed_methods`, `step_clock` and `operation_count` define what is measured and how;
  `step_comparison` puts them together.
- `measure_step` measures one method of a suite. `own_model` is ``lossbench cost``: it measures methods on a user's own
  model, and `gradient_agreement` compares the gradients of its tasks.
- ``python -m bench.cost`` makes the limits table (`gradnorm_overhead`), the figure of growth (`cost_growth`) and the
  ratio under ``torch.compile`` (`compiled`). They run on `cases`, two of which are the models in `networks`. `bounds`
  computes bounds of arithmetic and memory, and `floor` measures the least time that is possible.
- ``python -m bench.cost.method_costs`` measures every registered method.
- `gradient_norm` is a micro-benchmark of GradNorm's own part, and `micro` makes its table.
- `cost_terminal` and `cost_figures` show the results, and `devices` finds the device to measure on.

Nothing here knows how suites are run or reported.
"""
