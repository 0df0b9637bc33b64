"""The benchmark: run every balancer of a suite on every problem, store the results, and report them.

``lossbench run SUITE``, which is the same as ``python -m bench run SUITE``, goes through these modules in this order:

1. `suite.suite_file` reads the TOML file.
2. `suite.plan` lists the runs of the suite.
3. `execute.run_suite` does them, in the processes of `execute.workforce`.
4. `run.training` does one run, and `run.result_file` stores its result.
5. `suite.result_tables` joins the results to tables.
6. `analysis` draws conclusions from the tables, and `report` presents them.

The rules of the comparison are in ``PROTOCOL.md``.
"""
