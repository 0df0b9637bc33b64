"""A `PreTrainedModel` of transformers that holds a balancer saves, loads and resumes with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradNorm

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*pin_memory.*")]

CONFIG = transformers.BertConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)


class TwoTasks(transformers.BertPreTrainedModel):
    """A transformer with two heads, and the balancer of their losses."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        self.bert, self.fork = transformers.BertModel(config, add_pooling_layer=False), Fork(2)
        self.near, self.far = nn.Linear(16, 1), nn.Linear(16, 1)
        self.balancer = GradNorm(self.fork, tasks=["near", "far"])
        self.post_init()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for_near, for_far = self.fork(self.bert(input_ids).last_hidden_state.mean(1))
        near, far = self.near(for_near).squeeze(1) - labels, self.far(for_far).squeeze(1) - 3 * labels
        return {"loss": self.balancer({"near": near.square().mean(), "far": far.square().mean()})}


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def make(folder: Path) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=8, save_steps=4, report_to="none", disable_tqdm=True, use_cpu=True
    )
    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(64, (6,), generator=generator), "labels": torch.randn((), generator=generator)}
        for _ in range(64)
    ]
    return transformers.Trainer(TwoTasks(CONFIG), arguments, train_dataset=data)


def test_the_trainer_resumes_and_from_pretrained_loads_the_balancer(tmp_path: Path) -> None:
    whole = make(tmp_path)
    whole.train()
    expected = whole.model.state_dict()
    assert whole.model.balancer.updates.tolist() == [8, 8]
    assert whole.model.balancer.weights.tolist() != [1, 1]

    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    torch.testing.assert_close(resumed.model.state_dict(), expected, rtol=0, atol=0)

    whole.save_model(str(tmp_path / "final"))
    loaded = TwoTasks.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(loaded.state_dict(), expected, rtol=0, atol=0)
    assert loaded.balancer.tasks == ("near", "far")
