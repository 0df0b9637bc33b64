"""Compare our GradNorm with other implementations: packages on PyPI, and the usual double backward pass.

::

    pip install '.[peers]'
    python -m bench.peers          # prints the table, and writes results/peers/peers.csv

A peer that is not installed is skipped, and the table says so.

All peers train the regression problem with separate heads (T = 2, 10 and 40, batch 100) on one CPU thread, with fused
Adam for the network. Each is a `Peer` in a file of its own, used as its documentation says. Its row in the table has:

- The time of a step. The peer and equal weighting take turns, each on its own copy of the model. The row has the
  median ratio of their steps over rounds with a 95 % interval, the extra milliseconds, and their ratio to the extra
  milliseconds of our GradNorm. The row that compares equal weighting with itself shows how precise the ratio is. Slow
  steps are timed in fewer rounds.
- The error of the gradient that the network was trained on, compared with that of ``sum_i w_i L_i`` with the peer's own
  weights: relative to it, and the largest among all parameters and steps. It is large if GradNorm's own objective adds
  to the network's gradient.
- The error of the weights. Our GradNorm, with the same settings as the peer (`GradNormSetting`), weighs the same losses
  of the same network at every step. The error is the distance between the peer's weights and ours, relative to how far
  ours moved. GradNorm uses nothing of the tasks' gradients but their norms, so equal weights mean equal norms too.
- In words, how the peer's step still differs from ours.

`gradient_check` measures the two errors, `peer_table` measures times and collects everything, and `peer_terminal`
prints it. Two more commands: `solver_times` compares our solvers of Gramian methods with TorchJD's, and `step_times`
compares whole steps of the methods that combine gradients with TorchJD's and LibMTL's.
"""
