"""One call of a balancer and its backward pass: what a step measures, and how a window's passes are put together.

A step does not know what a method does with measurements: it hands them to the balancer. The balancer's ``_watch``
chooses the class:

- `Step` measures nothing. It is for methods that read losses, and between the measured steps of ``update_every``;
- `CountedStep` ends a backward pass after which the method learns nothing yet, as it looks at the losses again after
  the optimiser's step, or learns in turns;
- `NormsStep` measures norms, for methods that weigh the losses;
- `CombiningStep` has the method combine the gradients in the pass. `HeldStep` takes its place within ``held()``;
- `ImmediateStep` measures at once, when the balancer is called, for methods that learn from a second batch.
"""
