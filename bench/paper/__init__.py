"""``lossbench paper``: test what the GradNorm paper claims, each claim by an experiment with a verdict.

- `claim` defines a claim, a finding and an outcome; `experiments` does the runs that an experiment asks for;
  `claim_verdicts` turns numbers into verdicts.
- An experiment is a function from a `Lab` to an `Outcome`: `claim_toy` (claims 1 and 2), `claim_growth` (3),
  `claim_static` (4), `claim_alpha` (5), `claim_overhead` (6). `claims_figures` draws what they found.
- `all_claims` runs all experiments, and `claims_page` writes the page with their results.
"""
