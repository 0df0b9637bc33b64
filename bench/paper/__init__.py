"""``lossbench paper``: what the GradNorm paper claims, each claim an experiment with a verdict.

- `claim` is what a claim and a finding are; `lab` does the runs that an experiment asks for; `verdicts` judges numbers.
- An experiment is a function from a lab to an outcome: `toy` (claims 1 and 2), `growth` (3), `static` (4), `alpha` (5),
  `overhead` (6). `figures` draws what they found.
- `everything` does them all, and `page` writes what came of it.
"""
