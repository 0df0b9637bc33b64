"""Train two tasks on two data sets with the Trainer of transformers, one task in each batch.

A batch shows one task alone, so the balancer compares tasks over the batches that the Trainer accumulates: it follows
the Trainer's optimiser. It is a module of the model, so the Trainer's checkpoints have its state, and `from_pretrained`
loads it with a model that is a `PreTrainedModel`. Look for missing keys in the log when you resume such a model:
transformers 5.24 renames parameters of some trunks, ViT's among them, and does not find them in its checkpoints.

    python examples/hf_trainer.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from balancers import Fork, GradNorm

TASKS, TOPICS, ACCUMULATE = ["topic", "share"], 4, 4
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class TwoTasksModel(nn.Module):
    """A transformer, a head for each task, and the balancer of their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fork = BertModel(BertConfig(**SIZES), add_pooling_layer=False), Fork(num_tasks=2)
        self.heads = nn.ModuleDict({"topic": nn.Linear(32, TOPICS), "share": nn.Linear(32, 1)})
        layer = self.trunk.encoder.layer[-1].output.dense
        self.balancer = GradNorm(self.fork, wrt=layer, tasks=TASKS, accumulate=ACCUMULATE)

    def forward(self, task: str, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        features = self.fork(self.trunk(input_ids).last_hidden_state.mean(1))
        outputs = self.heads[task](features[TASKS.index(task)])
        loss = F.cross_entropy(outputs, labels) if task == "topic" else F.mse_loss(outputs.squeeze(1), labels) / 10
        return {"loss": self.balancer({task: loss}), "logits": outputs}


class BalancedTrainer(Trainer):
    """A Trainer whose optimiser the balancer follows, and which logs the weights."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        self.model.balancer.follow(optimizer)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        weights = zip(TASKS, self.model.balancer.weights.tolist(), strict=True)
        super().log(logs | {f"weight/{task}": weight for task, weight in weights}, start_time)


def batches(task: str, count: int) -> list[dict[str, str | Tensor]]:
    """Return a data set of one task: token sequences, each with its topic or 10 times the share drawn from it."""
    topics, others = torch.randint(TOPICS, (count, 16, 1)), torch.randint(64, (count, 16, 12))
    own = torch.rand(count, 16, 12) < torch.rand(count, 16, 1)
    tokens = torch.where(own, 16 * topics + others % 16, others)
    labels = topics.squeeze(2) if task == "topic" else 10 * own.float().mean(2)
    return [{"task": task, "input_ids": tokens[i], "labels": labels[i]} for i in range(count)]


def main(steps: int = 40) -> tuple[BalancedTrainer, BalancedTrainer]:
    """Return a Trainer that trained for ``steps`` steps, and one that went on from its checkpoint half-way."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": 1, "report_to": "none", "disable_tqdm": True}  # each item is a batch
        how = {"max_steps": steps, "save_steps": steps // 2, "logging_steps": max(1, steps // 4), "learning_rate": 1e-3}
        arguments = TrainingArguments(folder, gradient_accumulation_steps=ACCUMULATE, **how, **options)
        torch.manual_seed(0)
        data = [batch for task in TASKS for batch in batches(task, count=60)]  # the Trainer shuffles them
        trainers = [BalancedTrainer(TwoTasksModel(), arguments, lambda items: items[0], data) for _ in range(2)]
        trainers[0].train()
        trainers[1].train(resume_from_checkpoint=str(Path(folder, f"checkpoint-{steps // 2}")))
        return trainers[0], trainers[1]


if __name__ == "__main__":
    main()
