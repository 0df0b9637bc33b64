"""EPO search: bring the losses to given proportions, and then lower all of them together."""

import torch

from .engine import GradientBalancer, Read, Result, State, option, register
from .solvers.linear_program import maximise_on_simplex


@register
class EPO(GradientBalancer):
    r"""Head for the point of the Pareto front at which all :math:`r_i L_i` are equal (exact Pareto-optimal search).

    How far the losses are from the proportions :math:`1 / r_i` is their non-uniformity, a Kullback-Leibler divergence:

    .. math:: \hat\ell_i = \frac{r_i L_i}{\sum_j r_j L_j}, \quad
        \mu = \sum_i \hat\ell_i \log(T \hat\ell_i), \quad
        a_i = r_i \big( \log(T \hat\ell_i) - \mu \big), \quad c = M a

    with the Gramian M of the gradients. :math:`\sum_i a_i \nabla L_i` is the direction in which :math:`\mu` falls
    fastest, up to its length. The weights :math:`\alpha` are not negative, sum to 1, and solve a linear program. Where
    :math:`\mu` is above ``eps``, it lowers :math:`\mu`:

    .. math:: \max_\alpha \alpha^\top c \quad\text{s.t.}\quad (M \alpha)_j \ge b_j,

    where :math:`b_j = 0` for the tasks with the largest :math:`r_j L_j`, whose loss must not rise. Where some
    :math:`c_j` are positive, the losses of these tasks may rise without limit, and the others have :math:`b_j = c_j`.
    Where none is, :math:`b = 0`. So this step may raise losses. Elsewhere, the program lowers all losses:

    .. math:: \max_\alpha \sum_j (M \alpha)_j \quad\text{s.t.}\quad
        M \alpha \ge 0, \quad \alpha^\top c \ge \min(0, \max_j c_j).

    If no weights meet the constraints, they are :math:`r_i / \sum_j r_j`. Losses must not be negative. A loss of zero
    counts as a rounding of the others. If all losses are zero, they count as equal.

    At a fork, the weights are those of the trunk alone, and the heads are trained on the losses as they are. The paper
    weighs the losses, heads included, as ``fork=None`` does.

    Args:
        preferences: :math:`r_i`, positive: one per task or a dict by task name. They are used as they are, whatever
            their sum; by default :math:`1/T`. A task's loss ends up proportional to :math:`1 / r_i`.
        eps: the non-uniformity, 0 or more, up to which losses count as being in proportion.
        fork, wrt, options: see `GradientBalancer`. The paper measures all parameters.

    Raises:
        ValueError: a preference is not positive and finite, the number or the names of the preferences are not those
            of the tasks, or ``eps`` is negative or not finite.

    Example::

        preferences = {"class": 4.0, "box": 1.0}  # heads for a loss of "box" that is four times that of "class"
        balancer = EPO(None, wrt=net, tasks=["class", "box"], preferences=preferences)
        balancer(losses).backward()

    Source: Mahapatra and Rajan, "Multi-Task Learning with User Preferences: Gradient Descent with Controlled Ascent in
    Pareto Optimization", ICML 2020. As in the official code's default, the last constraint is there (*restricted*); its
    option *relaxed* is not. That code multiplies the weights by T, and has no finite weights where a loss is zero;
    libmoon replaces :math:`T \hat\ell_i` below 1e-3.
    """

    name = "epo"
    summary = "Bring the losses to given proportions, and then lower all of them together."
    reads = "gramian"
    use_when = "When the losses should end up in given proportions, on the Pareto front and not at any price."
    default_wrt = "parameters"
    needs_nonnegative_losses = True
    preferences: list[float] = option(lambda balancer: 1 / balancer.num_tasks, above=0, per_task=True)
    eps: float = option(1e-4, at_least=0)

    def update(self, read: Read, state: State) -> Result:
        gramian, r = read.gramian.double(), state["preferences"].double()
        weighted = r * (read.weights * read.losses).double()
        shares = torch.where(weighted.sum() > 0, weighted / weighted.sum(), 1 / len(r))
        rounding = torch.finfo(read.losses.dtype).eps
        logs = (len(r) * shares.clamp_min(rounding)).log()
        non_uniformity = shares @ logs
        distances = logs - non_uniformity
        distances = torch.where(distances.abs() > 4 * rounding, distances, 0)  # c is zero where all r L are equal
        c = gramian @ (r * distances)

        rises = c > 0
        held = (weighted == weighted.amax()) | ~rises.any()
        to_balance = torch.where(held, 0, torch.where(rises, -torch.inf, c))
        balances = non_uniformity > self.eps
        alpha, feasible = maximise_on_simplex(
            objective=torch.where(balances, c, gramian.sum(0)),
            rows=torch.cat([gramian, c.unsqueeze(0)]),
            bounds=torch.cat(
                [
                    torch.where(balances, to_balance, 0),
                    torch.where(balances, -torch.inf, c.amax().clamp_max(0)).unsqueeze(0),
                ]
            ),
        )
        weights = torch.where(feasible, alpha, r / r.sum())
        return Result(weights.to(read.gramian.dtype), statistics={"non_uniformity": non_uniformity})
