"""One command for a machine with a GPU: ``python -m bench.gpu``, or ``make bench-gpu``.

It runs the balancers' tests on CUDA and measures there what `bench.cost`, `bench.peers` and a suite measure on the CPU,
within a time budget. Nothing needs a network.

- `gpu_parts` names the parts. Each is measured in a process of its own (`measure_part`), so that an error on the
  device, or a part that hangs, harms no other.
- `part_runner` starts the processes, one after another, until the time is up. `gpu_summary` keeps what became of each.
- `part_measurement` is what a part gets: a folder, a device, and a table that is saved after every row. A part that was
  stopped goes on after the last row.
- `device_tests` and `outcome_log` run the tests, `gpu_costs` and `captured_steps` measure steps, and `gpu_suite` runs
  the default suite, made as large as fits.
"""
