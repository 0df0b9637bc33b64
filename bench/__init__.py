"""The benchmark: runs every balancer of a suite on every problem, stores what comes out, and reports it.

``lossbench run SUITE``, the same as ``python -m bench run SUITE``, goes through these files in this order: `suite`
reads the TOML file, `plan` says which runs that is, `schedule` does them through `workers`, `train` does one run,
`store` keeps its result, `tables` joins the results, `analysis` draws conclusions from them and `report` shows these.
The rules of the comparison are in ``PROTOCOL.md``.
"""
