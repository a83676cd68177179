"""Modules that read weights instead of calling their children: scored right, whatever the form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from t2ialign_eggroll import EggrollTrainer


class Encoder(nn.Module):
    """nn.TransformerEncoderLayer has a fast path that never calls its linear layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.layer(x)).mean((1, 2))


class Tied(nn.Module):
    """The head is the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return (torch.tanh(self.inner(x)) @ self.embedding.weight.T).mean((1, 2))


class Functional(nn.Module):
    """F.linear on a child's weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(F.linear(x, self.layer.weight, self.layer.bias)).mean((1, 2))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.layer(x)).mean((1, 2))


def scores(kind, batched):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    trainer = EggrollTrainer(model, lambda net: net(x).pow(2).sum(), population_size=8, sigma=0.1, batched=batched)
    return trainer, trainer.evaluate()


@pytest.mark.parametrize("kind", [Encoder, Tied, Functional, Plain])
def test_a_batch_scores_what_the_black_box_scores(kind, caplog):
    trainer, together = scores(kind, batched=True)
    _, alone = scores(kind, batched=False)
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-5)
    assert alone.std() > 1e-4
    warned = any("scores another network than the model" in message for message in caplog.messages)
    assert warned is not trainer.batched


def test_a_plain_module_stays_batched():
    assert scores(Plain, batched=True)[0].batched


def test_the_weights_that_are_read_are_named(caplog):
    scores(Functional, batched=True)
    assert any("layer.weight" in message for message in caplog.messages)
