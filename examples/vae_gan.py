"""Train a VAE whose output a discriminator judges, with VQGAN's or EnCodec's weights.

Reconstruction and adversarial loss judge one output, which the model passes through the fork. The KL divergence does
not depend on the output, so it is added to what the balancer returns. The discriminator makes a step of its own:

    python examples/vae_gan.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import AdaptiveAdversarialWeight, EnCodecBalancer, Fork

LATENT, POINTS = 4, 32


class VAE(nn.Module):
    """An encoder to a Gaussian's mean and log variance, a decoder, and a fork at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(POINTS, 64), nn.ReLU(), nn.Linear(64, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, POINTS))
        self.fork = Fork(num_tasks=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an alias of the output for each loss, and the mean KL divergence from a standard Gaussian."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return *self.fork(self.decoder(z)), divergence


def draw(number: int = 64) -> Tensor:
    """Return sine waves of random frequency and phase, ``(number, POINTS)``."""
    t, frequency, phase = torch.linspace(0, 1, POINTS), 1 + torch.rand(number, 1), 6.28 * torch.rand(number, 1)
    return (6.28 * frequency * t + phase).sin()


def main(steps: int = 150, method: str = "vqgan") -> list[dict[str, float]]:
    """Return what the balancer logs in each step, the KL divergence and the discriminator's loss."""
    torch.manual_seed(0)
    model, tasks = VAE(), ["reconstruction", "adversarial"]
    discriminator = nn.Sequential(nn.Linear(POINTS, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    if method == "vqgan":  # both gradients are measured at the decoder's last layer
        last = model.decoder[-1].weight
        balancer = AdaptiveAdversarialWeight(model.fork, wrt=[last], tasks=tasks, factor=0.5, start=10)
    else:  # at the output itself: three quarters of the gradient for the reconstruction
        balancer = EnCodecBalancer(model.fork, tasks=tasks, shares=[3.0, 1.0], total_norm=0.005)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    judges = torch.optim.Adam(discriminator.parameters(), lr=0.001)
    history = []
    for step in range(steps):
        x = draw()
        reconstructed, judged, divergence = model(x)
        losses = {
            "reconstruction": F.mse_loss(reconstructed, x),
            "adversarial": F.softplus(-discriminator(judged)).mean(),
        }
        optimizer.zero_grad()
        (balancer(losses) + 0.001 * divergence).backward()
        optimizer.step()

        verdicts = F.softplus(-discriminator(x)).mean() + F.softplus(discriminator(reconstructed.detach())).mean()
        judges.zero_grad()  # drops what the adversarial loss left in the discriminator
        verdicts.backward()
        judges.step()
        history.append(balancer.scalars() | {"loss/divergence": divergence.item(), "loss/verdicts": verdicts.item()})
        if step in (0, 10, steps - 1):
            weights = {name: round(value, 3) for name, value in history[-1].items() if name.startswith("weight/")}
            print(f"step {step}: {weights}")
    return history


if __name__ == "__main__":
    for each in ("vqgan", "encodec"):
        print(each)
        main(method=each)
