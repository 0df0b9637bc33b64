"""The losses of dense prediction agree with plain NumPy, also for pixels and whole images without a target."""

import numpy as np
import pytest
import torch

from tasks.dense.losses import depth_loss, normal_loss, segmentation_loss

N, C, H, W = 3, 5, 6, 8


def targets(share: float) -> dict[str, torch.Tensor]:
    """Return random targets, which a pixel has with probability ``share``; the second image has none."""
    known = torch.rand(N, H, W) < share
    known[1] = False
    normal = torch.nn.functional.normalize(torch.randn(N, 3, H, W), dim=1)
    return {
        "label": torch.randint(C, (N, H, W)).masked_fill(~known, -1),
        "depth": (torch.rand(N, H, W) + 0.1).masked_fill(~known, 0)[:, None],
        "normal": normal * known[:, None],
    }


def cases() -> dict:
    return {
        "label": (segmentation_loss, torch.randn(N, C, H, W)),
        "depth": (depth_loss, torch.randn(N, 1, H, W)),
        "normal": (normal_loss, torch.randn(N, 3, H, W)),
    }


def by_pixel(kind: str, prediction: np.ndarray, true: np.ndarray) -> list[float]:
    found = []
    for n, y, x in np.ndindex(N, H, W):
        p = prediction[n, :, y, x]
        if kind == "label" and true[n, y, x] >= 0:
            found.append(np.log(np.exp(p).sum()) - p[true[n, y, x]])
        elif kind == "depth" and true[n, 0, y, x] != 0:
            found.append(abs(p[0] - true[n, 0, y, x]))
        elif kind == "normal" and np.any(true[n, :, y, x] != 0):
            found.append(1 - p @ true[n, :, y, x] / np.linalg.norm(p))
    return found


@pytest.mark.parametrize("share", [0.1, 0.7, 1])
@pytest.mark.parametrize("kind", ["label", "depth", "normal"])
def test_a_loss_is_the_mean_over_pixels_that_have_a_target(kind, share):
    torch.manual_seed(1)
    loss, prediction = cases()[kind]
    true = targets(share)[kind]
    prediction.requires_grad_()
    value = loss(prediction, true)
    expected = by_pixel(kind, prediction.detach().double().numpy(), true.numpy())
    assert value.shape == ()
    np.testing.assert_allclose(value.item(), np.mean(expected), rtol=1e-5)

    [gradient] = torch.autograd.grad(value, prediction)
    unknown = {"label": true < 0, "depth": true[:, 0] == 0, "normal": (true == 0).all(1)}[kind]
    assert gradient.movedim(1, -1)[unknown].abs().max().item() == 0 if unknown.any() else share == 1
    assert gradient.movedim(1, -1)[~unknown].abs().sum(-1).min().item() > 0


@pytest.mark.parametrize("kind", ["label", "depth", "normal"])
def test_without_a_target_the_loss_is_zero_and_of_the_graph(kind):
    loss, prediction = cases()[kind]
    prediction.requires_grad_()
    value = loss(prediction, targets(0)[kind])
    assert value.item() == 0
    value.backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_a_class_without_probability_does_no_harm_where_nothing_is_known():
    logits = torch.zeros(1, 2, 1, 2)
    logits[:, 0] = -torch.inf
    assert segmentation_loss(logits, torch.tensor([[[1, -1]]])).item() == 0


def test_a_predicted_direction_of_length_zero_is_at_right_angles_to_all():
    prediction = torch.zeros(1, 3, 1, 2, requires_grad=True)
    normal = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 1, 2)
    loss = normal_loss(prediction, normal)
    assert loss.item() == 1
    loss.backward()
    assert prediction.grad.isfinite().all()
