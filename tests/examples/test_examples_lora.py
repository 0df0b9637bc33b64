"""With LoRA, a balancer measures the adapters, and the frozen transformer stays as it was."""

import pytest
import torch

from .programs import check_that_it_trains, load

pytest.importorskip("peft")
pytest.importorskip("transformers")


@pytest.mark.slow
def test_trains_the_adapters_alone() -> None:
    module = load("lora")
    torch.manual_seed(0)
    before = module.Net().state_dict()
    net, history = module.main(steps=60)

    check_that_it_trains(history, ["topic", "share"])

    changed = {name for name, value in net.trunk.state_dict().items() if not value.equal(before[f"trunk.{name}"])}
    assert changed
    assert changed == {name for name, each in net.trunk.named_parameters() if each.requires_grad}
    assert all("lora_" in name for name in changed)


def test_the_norms_are_those_of_the_last_blocks_adapters() -> None:
    module = load("lora")
    torch.manual_seed(0)
    net = module.Net().eval()  # no dropout
    balancer = module.GradNorm(net.fork, wrt=net.last_block, tasks=["topic", "share"])
    tokens, topic, share = module.batch(8)
    topic_out, share_out = net(tokens)
    losses = [torch.nn.functional.cross_entropy(topic_out, topic), (share_out - share).square().mean()]
    adapters = [each for each in net.last_block.parameters() if each.requires_grad]
    expected = [
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, adapters, retain_graph=True)]).norm()
        for loss in losses
    ]
    balancer(losses).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], torch.stack(expected), rtol=1e-4, atol=0)
