"""Fine-tune a frozen transformer on two tasks with LoRA, where the adapters are all that the tasks share and train.

`wrt` is the transformer's last block: of a module, a balancer measures the parameters that require grad, here the
adapters of that block. With `wrt=net.trunk` it would measure all adapters, one pass through the trunk for each task,
as a method that combines gradients does (`PCGrad(net.fork, wrt=net.trunk)`); without `wrt`, the features:

    python examples/lora.py
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from balancers import Fork, GradNorm

TOPICS = 4


class Net(nn.Module):
    """A frozen transformer with adapters, and two heads on the mean of its last hidden states."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        pretrained = BertModel(config, add_pooling_layer=False)  # in earnest: BertModel.from_pretrained(...)
        self.trunk = get_peft_model(pretrained, LoraConfig(r=4, target_modules=["query", "value"]))
        self.fork = Fork(num_tasks=2)
        self.topic, self.share = nn.Linear(32, TOPICS), nn.Linear(32, 1)

    @property
    def last_block(self) -> nn.Module:
        return self.trunk.get_base_model().encoder.layer[-1]

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        for_topic, for_share = self.fork(self.trunk(input_ids=tokens).last_hidden_state.mean(1))
        return self.topic(for_topic), self.share(for_share).squeeze(1)


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return token sequences, each one's topic, and ten times the share of its tokens drawn from this topic."""
    topics, others = torch.randint(TOPICS, (count, 1)), torch.randint(64, (count, 12))
    own = torch.rand(count, 12) < torch.rand(count, 1)
    tokens = torch.where(own, 16 * topics + others % 16, others)
    return tokens, topics.squeeze(1), 10 * own.float().mean(1)


def main(steps: int = 60) -> tuple[Net, list[dict[str, float]]]:
    """Return the trained network, and what the balancer logs in each step."""
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.last_block, tasks=["topic", "share"], alpha=0.12)
    optimizer = torch.optim.AdamW([each for each in net.parameters() if each.requires_grad], lr=0.01)
    measured = sum(each.numel() for each in net.last_block.parameters() if each.requires_grad)
    print(f"measured: {measured} of the {sum(each.numel() for each in net.trunk.parameters())} parameters of the trunk")
    history = []
    for step in range(steps):
        tokens, topic, share = batch(32)
        topic_out, share_out = net(tokens)
        losses = {"topic": F.cross_entropy(topic_out, topic), "share": F.mse_loss(share_out, share) / 10}
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step in (0, steps - 1):
            print(f"step {step}:", {name: round(value, 3) for name, value in history[-1].items()})
    return net, history


if __name__ == "__main__":
    main()
