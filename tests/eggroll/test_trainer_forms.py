"""Modules that read weights instead of calling their children: scored right, whatever the form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from t2ialign_eggroll import EggrollTrainer

pytestmark = pytest.mark.usefixtures("factored")


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


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean((1, 2))


class Parametrised(Plain):
    """Weights that are computed from parameters."""

    def __init__(self, form):
        super().__init__()
        self.layer = form(self.layer)


class Words(nn.Module):
    """An embedding whose weight is the head's, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(2, 8), nn.Linear(8, 2, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding((x[..., 0] > 0).long()))).pow(2).mean((1, 2))


class Running(Plain):
    """Buffers that every call changes: one in place, and one by another tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        y, new = self.layer(x), 0.5 * self.layer(x).mean((0, 1))
        if self.in_place:
            self.mean.mul_(0.5).add_(new)
        else:
            self.mean = self.mean * 0.5 + new
        return torch.tanh(y - self.mean).mean((1, 2))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(8, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0].mean((1, 2))


@dataclass
class Answer:
    y: torch.Tensor


class Answers(Plain):
    """Gives its output inside something else."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x):
        return self.wrapped(super().forward(x))


class Twice(Plain):
    """A layer and a parameter under two names each."""

    def __init__(self):
        super().__init__()
        self.again = self.layer
        self.gain = self.other_gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return (torch.tanh(self.again(self.layer(x))) * self.gain + self.other_gain).mean((1, 2))


class Half(nn.Module):
    """Layers in bfloat16, a norm in float32."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 1).bfloat16()

    def forward(self, x):
        return self.head(self.norm(self.layer(x.bfloat16()).float()).bfloat16()).float().mean((1, 2))


def value(found):
    found = found["y"] if isinstance(found, dict) else found
    return found.y if isinstance(found, Answer) else found


NEIGHBOURS = {
    "attention": (Attention, True),
    "weight-norm": (lambda: Parametrised(parametrizations.weight_norm), True),
    "spectral-norm": (lambda: Parametrised(parametrizations.spectral_norm), True),
    "tied": (Words, True),
    "buffer-assigned": (lambda: Running(False), True),
    "buffer-in-place": (lambda: Running(True), False),
    "gru": (lambda: Recurrent(nn.GRU), False),
    "lstm": (lambda: Recurrent(nn.LSTM), False),
    "dataclass": (lambda: Answers(Answer), True),
    "dictionary": (lambda: Answers(lambda y: {"y": y}), True),
    "two-names": (Twice, True),
    "bfloat16-and-norm": (Half, None),  # which rounding decides
    "frozen-weight": (lambda: Plain().requires_grad_(False), True),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_unusual_modules_train_in_a_batch_or_one_member_at_a_time(name, caplog):
    """Alike in both forms, with a warning where they cannot be batched, and no buffer is another one afterwards."""
    make, stays = NEIGHBOURS[name]
    x, found = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1)), []
    for batched in (False, True):
        torch.manual_seed(0)
        model = make()
        if name == "frozen-weight":
            model.layer.bias.requires_grad_(True)
        buffers = {key: tensor.clone() for key, tensor in model.named_buffers()}
        trainer = EggrollTrainer(
            model, lambda net: value(net(x)).pow(2).sum() + value(net(x)).sum(), population_size=6, batched=batched
        )
        found.append(trainer.evaluate())
        assert trainer.train(2)
        assert all(torch.equal(tensor, buffers[key]) for key, tensor in model.named_buffers())
    assert found[0].std() > 1e-4
    tolerance = 0.05 if name == "bfloat16-and-norm" else 1e-3
    assert torch.allclose(*found, rtol=tolerance, atol=tolerance * found[0].std().item())
    assert stays is None or trainer.batched is stays
    assert ("one member at a time" in caplog.text) is not trainer.batched


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


def test_a_small_layer_may_be_read_in_any_way(monkeypatch):
    monkeypatch.setattr("t2ialign_eggroll.batched.SMALL", 64)
    trainer, together = scores(Functional, batched=True)
    assert trainer.batched
    assert torch.allclose(together, scores(Functional, batched=False)[1], rtol=1e-3, atol=1e-5)


def test_the_weights_that_are_read_are_named(caplog):
    scores(Functional, batched=True)
    assert any("layer.weight" in message for message in caplog.messages)
