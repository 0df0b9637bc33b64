"""Peers: our GradNorm beside others' on PyPI, and beside the double backward pass that GradNorm is mostly written with.

::

    pip install '.[peers]'
    python -m bench.peers          # prints the table, and writes results/peers/peers.csv

A peer that is not installed is passed over, and the table says so.

All train the regression problem with separate heads (T = 2, 10 and 40, batch 100) on one CPU thread, the network by
fused Adam. Each is a `Peer` in a file of its own, used as its documentation says, and stands in a row with what
was measured:

- Time. Each contender in turn with equal weighting, on a copy each of the model: the ratio of their steps, its median
  over rounds with a 95 % interval; the extra milliseconds; and how many times ours these are. Equal weighting against
  itself shows what the ratio is worth. Slow steps are timed in fewer rounds.
- Whether the network was trained on ``sum_i w_i L_i``, with the weights that the contender had: how far its gradient
  was from that sum's, relative to it, where it was furthest among all parameters and steps. What a GradNorm's own
  objective adds to it shows here.
- Whether the weights are GradNorm's. Ours, set as the contender is (`GradNormSetting`), weighs the same losses of the
  same network at every step: how far apart their weights came, relative to how far ours moved. GradNorm reads the
  tasks' gradients by their norms alone, so equal weights mean that these were equal too. What remains, the row says
  in words.

`check` does the latter two, `table` times and collects, `show` prints.
"""
