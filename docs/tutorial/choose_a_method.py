"""
Choose a method for three tasks
===============================

A small network learns three tasks at once from the same inputs: by how much the price of a thing changes, its kind, and
a count. You train it with plainly added losses and see what goes wrong, bring the losses to one scale, look at the
weights that three methods choose, and pick one of them by scores on data that no training saw. All of it takes a
quarter of a minute on a CPU.
"""

# %%
# The data and the network
# ------------------------
# The price changes by some tens up or down, the kind is one of five, and the count follows a Poisson distribution. A
# trunk with eight features has to serve all three, so that the tasks compete for it.

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from balancers import Fork, create

torch.set_num_threads(1)  # small operations are faster on one
TASKS = ["price", "kind", "count"]
KINDS = 5


def draw(rows, seed):
    """Return inputs and the targets of the three tasks."""
    truth, noise = (torch.Generator().manual_seed(s) for s in (0, seed))
    towards = torch.randn(3, 24, KINDS, generator=truth) / 24**0.5
    x = torch.randn(rows, 24, generator=noise)
    price = 20 * torch.tanh(x @ towards[0])[:, :2].sum(1)
    price += 5 * torch.randn(rows, generator=noise)
    scores = x @ towards[1] + 0.2 * torch.randn(rows, KINDS, generator=noise)
    rate = (x @ towards[2])[:, :2].prod(1).exp().clamp(max=20)
    count = torch.poisson(rate, generator=noise)
    return x, {"price": price, "kind": scores.argmax(1), "count": count}


class Net(nn.Module):
    """A trunk and three heads; the fork marks where the trunk ends."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 8), nn.Tanh()
        )
        self.fork = Fork(num_tasks=3)
        sizes = {"price": 1, "kind": KINDS, "count": 1}
        self.heads = nn.ModuleDict(
            {task: nn.Linear(8, sizes[task]) for task in TASKS}
        )

    def forward(self, x):
        features = zip(TASKS, self.fork(self.trunk(x)), strict=True)
        return {task: self.heads[task](z).squeeze(1) for task, z in features}


train_x, train_y = draw(4_000, seed=1)
test_x, test_y = draw(2_000, seed=2)


def raw_losses(outputs, targets):
    """Return the losses as one would write them first."""
    return {
        "price": F.mse_loss(outputs["price"], targets["price"]),
        "kind": F.cross_entropy(outputs["kind"], targets["kind"]),
        "count": F.poisson_nll_loss(outputs["count"], targets["count"], full=True),
    }


# %%
# What a constant predictor scores
# --------------------------------
# A predictor that ignores the inputs can only learn the mean of the targets, or the frequencies of the kinds. Its loss
# is the scale of the task: below it, a network has learnt something.

shares = train_y["kind"].bincount(minlength=KINDS) / len(train_x)
mean_count = train_y["count"].mean().log().expand(len(train_x))
SCALES = {
    "price": train_y["price"].var(correction=0),
    "kind": torch.special.entr(shares).sum(),
    "count": F.poisson_nll_loss(mean_count, train_y["count"], full=True),
}
for task, scale in SCALES.items():
    print(f"{task}: a constant predictor's loss is {scale:.3g}")

# %%
# The price's loss is hundreds of times the others. Added plainly, the three losses are the price's loss.
#
# A training loop that takes any method
# -------------------------------------
# The balancer takes the place of ``sum``. The rest of the loop is what it was.


def losses_of(net, x, y, scaled=True):
    """Return the losses; scaled, each is divided by that of a constant predictor."""
    losses = raw_losses(net(x), y)
    if not scaled:
        return losses
    return {task: loss / SCALES[task] for task, loss in losses.items()}


def train(method, seed=0, steps=500, lr=0.01, scaled=True, **options):
    """Train with a method by its name, and return scaled test losses and the weights."""
    torch.manual_seed(seed)
    net = Net()
    balancer = create(method, net.fork, tasks=TASKS, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weights = []
    for _ in range(steps):
        rows = torch.randint(len(train_x), (64,))
        targets = {task: y[rows] for task, y in train_y.items()}
        losses = losses_of(net, train_x[rows], targets, scaled)
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        schedule.step()
        weights.append(balancer.weights.detach().clone())
    with torch.no_grad():
        scores = losses_of(net, test_x, test_y)
    scores = {task: float(score) for task, score in scores.items()}
    return scores, torch.stack(weights)


def show(name, scores):
    """Print a row of scores."""
    columns = [f"{task} {score:.3f}" for task, score in scores.items()]
    print(f"{name:25}" + "  ".join(columns))


# %%
# First: losses as they are, and losses on one scale
# --------------------------------------------------
# Below 1, the network knows more than a constant predictor.

show("losses added as they are", train("equal", scaled=False)[0])
show("losses on one scale", train("equal")[0])

# %%
# Added as they are, two of three tasks learn next to nothing. Dividing by three constants is the largest step of this
# tutorial, and it needs no method at all. Only from here on does a method have something to add.
#
# Second: the weights that methods choose
# ---------------------------------------
# GradNorm and Nash-MTL read gradients, at the features that the fork handed out. Uncertainty weighting learns from the
# losses alone; it is told which of them are negative log-likelihoods of which kind.

METHODS = {
    "equal": {},
    "uncertainty": {"likelihoods": ["gaussian", "softmax", "softmax"]},
    "gradnorm": {"alpha": 0.5},
    "nash-mtl": {},
}
runs = {
    name: [train(name, seed, **options) for seed in range(3)]
    for name, options in METHODS.items()
}

fig, panels = plt.subplots(
    1, 4, figsize=(10, 2.8), sharey=True, layout="constrained"
)
for panel, (name, of_seeds) in zip(panels, runs.items(), strict=True):
    weights = of_seeds[0][1]
    for i, task in enumerate(TASKS):
        panel.plot(3 * weights[:, i] / weights.sum(1), label=task, linewidth=1)
    panel.set(title=name, xlabel="step")
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("weight (their mean is 1)")
panels[-1].legend(frameon=False)
fig.suptitle("The weights over the steps of one training")
plt.show()

# %%
# The lines tell what a method does to your training. A weight that goes to zero means that a task is being given up.
# A weight that jumps from step to step adds noise. Weights that settle early could be fixed weights next time.
#
# Third: pick by scores
# ---------------------
# One training is an anecdote. Here are three seeds of each, on the test data:

fig, panels = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
for panel, task in zip(panels, TASKS, strict=True):
    for i, of_seeds in enumerate(runs.values()):
        panel.plot(
            [scores[task] for scores, _ in of_seeds], [i] * 3, "o", alpha=0.7
        )
    panel.set(title=task, xlabel="loss over a constant predictor's")
    panel.set_yticks(
        range(len(runs)), runs if task == TASKS[0] else [""] * len(runs)
    )
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
fig.suptitle("Test losses of three seeds: further left is better")
plt.show()

for name, of_seeds in runs.items():
    means = {
        task: sum(scores[task] for scores, _ in of_seeds) / 3 for task in TASKS
    }
    show(name, means | {"mean": sum(means.values()) / 3})

# %%
# No method is better than equal weighting on all three tasks: each chose another point of a trade-off. Uncertainty
# weighting learns the kind best, and pays with the price; Nash-MTL does the opposite. So say first what you want:
#
# - If it is the smallest mean of the scaled losses, equal weights are hard to beat, for they minimise just that.
# - If one task matters more, give it more weight: ``StaticWeighting([1.0, 3.0, 1.0])``.
# - If no task may pay for another, look at each task beside a network that was trained on it alone.
#
# What this does not show
# -----------------------
# If the dots of two methods overlap, three seeds can't tell them apart, and the cheaper one is the better choice. And
# all methods had one learning rate here. A method that changes the sum of the weights, or changes weights from step to
# step, changes the length of Adam's steps too, so that a fair comparison tunes the learning rate of each. That takes
# longer than a tutorial, and one command does it for a problem of your own: :doc:`lossbench try </add-a-problem>` tunes
# nine methods, runs them on fresh seeds, and tells gains from noise.
#
# - :doc:`/start/which-method` says what to try first.
# - :doc:`/guides/your-loop` explains each line of the loop.
# - :doc:`/methods` lists all methods.
