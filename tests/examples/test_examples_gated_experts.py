"""The example of a multi-gate mixture of experts: the experts' outputs are the features of both tasks."""

import pytest
import torch

from .programs import check_that_it_trains, load


@pytest.mark.slow
def test_the_weights_move_and_each_loss_falls() -> None:
    history = load("gated_experts").main(steps=100)

    check_that_it_trains(history, ["sine", "product"])


def test_each_task_reads_its_own_mixture_of_the_same_experts() -> None:
    program = load("gated_experts")
    torch.manual_seed(1)
    net, x = program.GatedExperts(num_tasks=2), torch.randn(5, 8)

    outputs = net(x)

    experts = torch.stack([expert(x) for expert in net.experts], 1)
    for head, output in zip(net.heads, outputs, strict=True):
        mixture = torch.einsum("be,bew->bw", head.gate(x).softmax(1), experts)
        torch.testing.assert_close(output, head.tower(mixture).squeeze(1))
