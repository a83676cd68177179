"""The trainers on plain torch modules."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from t2ialign_eggroll import EggrollTrainer, ESTrainer, OpenESTrainer, batched
from t2ialign_eggroll.batched import evaluate_members
from t2ialign_eggroll.noise import Members, Noise


class Mixed(nn.Module):
    """Embedding, residual linear layers, convolutions with and without groups, norms, a tied head, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.line = nn.Conv1d(6, 4, 3, padding=1)
        self.grouped = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.batch_norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.ones(6))
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.dropout(torch.tanh(self.first(self.norm(x))))
        x = self.batch_norm(self.grouped(torch.relu(self.line(x.transpose(1, 2)))))
        return self.head(self.last(x.mean(2)) * self.gain)


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    return Mixed().eval()


def mlp(seed=0, hidden=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
Y = torch.stack([X[:, 0] * 2, X.sum(1)], 1)


def closeness(model):
    return -F.mse_loss(model(X), Y)


@pytest.mark.parametrize("small", [0, batched.SMALL])
@pytest.mark.parametrize("rank", [1, 3, None])
@torch.no_grad()
def test_batched_fitness_equals_setting_the_weights(mixed, rank, small, monkeypatch):
    monkeypatch.setattr(batched, "SMALL", small)
    tokens = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(0))

    def fitness(model):
        return model(tokens).square().sum(1).log1p().mean()

    noise = Noise({name: p.shape for name, p in mixed.named_parameters()}, rank)
    sigma = {name: 0.3 for name, _ in mixed.named_parameters()}
    drawn = Members(5).draw(noise.of(0, 0), slice(0, 5), sigma=sigma)
    found = evaluate_members(mixed, fitness, drawn)
    for member in range(5):
        weights = {name: p + drawn[name].dense()[member] for name, p in mixed.named_parameters()}
        expected = fitness(
            lambda t, weights=weights: torch.func.functional_call(mixed, weights, (t,), tie_weights=True)
        )
        assert found[member].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_batched_images(kernel, bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, kernel, stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(5, 4, kernel, dilation=2),
        nn.Flatten(),
    )
    images = torch.randn(2, 3, 12, 12)
    noise = Noise({name: p.shape for name, p in model.named_parameters()}, 2)
    drawn = Members(4).draw(noise.of(0, 0), slice(0, 4))
    found = evaluate_members(model, lambda m: m(images).square().mean(), drawn)
    for member in range(4):
        weights = {name: p + drawn[name].dense()[member] for name, p in model.named_parameters()}
        expected = torch.func.functional_call(model, weights, (images,)).square().mean()
        assert found[member].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [EggrollTrainer, OpenESTrainer])
def test_batched_and_black_box_training_agree(kind):
    runs = []
    for options in ({"batched": True, "chunk_size": 64}, {"batched": True, "chunk_size": 3}, {"batched": False}):
        model = mlp()
        trainer = kind(model, closeness, population_size=10, learning_rate=0.05, **options)
        trainer.train(3)
        runs.append((torch.cat([p.detach().flatten() for p in model.parameters()]), trainer.history))
    for parameters, history in runs[1:]:
        torch.testing.assert_close(parameters, runs[0][0], rtol=1e-3, atol=1e-5)
        assert [line["mean_fitness"] for line in history] == pytest.approx(
            [line["mean_fitness"] for line in runs[0][1]], rel=1e-4
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda m: EggrollTrainer(m, closeness, population_size=64, learning_rate=0.5, batched=True),
        lambda m: EggrollTrainer(m, closeness, population_size=63, learning_rate=0.5, rank=2, batched=True),
        lambda m: OpenESTrainer(m, closeness, population_size=64, learning_rate=0.005, batched=True),
        lambda m: EggrollTrainer(
            m,
            closeness,
            population_size=64,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
            shaping="centred-rank",
            batched=True,
        ),
        lambda m: EggrollTrainer(m, closeness, population_size=64, learning_rate=0.5, group_size=8, batched=True),
    ],
    ids=["eggroll", "odd-rank-2", "open-es", "adam-ranks", "groups"],
)
def test_regression_is_learned(make):
    model = mlp()
    start = closeness(model).item()
    make(model).train(120)
    assert closeness(model).item() > start / 8


def test_a_black_box_may_do_anything():
    def fitness(model):
        return -sum(abs(float(v)) for v in model(X).detach().numpy().round(1).flatten()) / 64

    model = mlp()
    start = fitness(model)
    EggrollTrainer(model, fitness, population_size=32, learning_rate=0.5, sigma=0.05).train(40)
    assert fitness(model) > start / 2


@pytest.mark.parametrize("batched", [True, False])
def test_weights_and_modes_are_bit_identical_after_an_evaluation(mixed, batched):
    mixed.train()
    mixed.norm.eval()
    tokens = torch.randint(0, 11, (5, 7))
    trainer = EggrollTrainer(mixed, lambda m: m(tokens).square().mean(), population_size=6, batched=batched)
    before = {name: tensor.clone() for name, tensor in mixed.state_dict().items()}
    pointers = {name: p.data_ptr() for name, p in mixed.named_parameters()}
    trainer.evaluate()
    for name, tensor in mixed.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert {name: p.data_ptr() for name, p in mixed.named_parameters()} == pointers
    assert mixed.training
    assert not mixed.norm.training
    assert mixed.embedding.weight is mixed.head.weight


@pytest.mark.parametrize("batched", [True, False])
def test_weights_survive_a_failing_fitness(batched):
    def failing(model):
        model(X)
        raise KeyError("no")

    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError):
        EggrollTrainer(model, failing, population_size=4, batched=batched).evaluate()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model(X).shape == (32, 2)


def test_the_seed_decides_everything():
    def final(seed):
        torch.manual_seed(torch.seed() % 1000)  # ambient randomness must not matter
        state = mlp()
        EggrollTrainer(state, closeness, population_size=8, seed=seed).train(2)
        return torch.cat([p.detach().flatten() for p in state.parameters()])

    assert torch.equal(final(3), final(3))
    assert not torch.equal(final(3), final(4))


@pytest.mark.parametrize("batched", [True, False])
def test_members_draw_the_same_random_minibatch_and_the_callers_generator_is_untouched(batched):
    seen = []

    def fitness(model):
        rows = torch.randint(0, 32, (4,))
        seen.append(tuple(rows.tolist()))
        return closeness(model)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer = EggrollTrainer(mlp(7), fitness, population_size=6, batched=batched, chunk_size=2)
    torch.manual_seed(5)
    trainer.train(2)
    assert torch.equal(torch.rand(3), expected)
    assert len(set(seen)) == 2, "one minibatch a generation"
    assert sum(before != after for before, after in pairwise(seen)) == 1


def test_noise_reuse_repeats_the_noise_and_the_default_does_not():
    def noise(trainer):
        found = []
        for _ in range(4):
            found.append(trainer.sample_perturbations(range(2))["0.weight"].dense())
            trainer.step()
        return found

    fresh = noise(EggrollTrainer(mlp(), closeness, population_size=4))
    assert all(not torch.equal(a, b) for i, a in enumerate(fresh) for b in fresh[:i])
    reused = noise(EggrollTrainer(mlp(), closeness, population_size=4, noise_reuse=2))
    assert torch.equal(reused[0], reused[1])
    assert torch.equal(reused[2], reused[3])
    assert not torch.equal(reused[1], reused[2])


def test_a_broken_member_is_left_out():
    """The update equals that of the others alone."""
    trainer = EggrollTrainer(mlp(), closeness, population_size=6, antithetic=False)
    scores = trainer.evaluate()
    scores[2] = torch.nan
    trainer.evaluate = lambda: scores
    line = trainer.step()
    assert line["nonfinite"] == pytest.approx(1 / 6)
    assert line["update_norm"] > 0
    assert all(p.isfinite().all() for p in trainer.parameters.values())


def test_the_best_member_really_scored_best():
    model = mlp()
    trainer = EggrollTrainer(model, closeness, population_size=8, learning_rate=1e-6)
    scores = []
    for _ in range(4):
        scores.append(trainer.evaluate().max().item())
        trainer.step()
    assert trainer.best_fitness == max(scores)
    model.load_state_dict(trainer.best_parameters)
    assert closeness(model).item() == pytest.approx(trainer.best_fitness, rel=1e-6)


@pytest.mark.parametrize("adam", [False, True])
def test_resume_is_exact(adam):
    def make():
        model = mlp()
        options = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01)} if adam else {}
        trainer = EggrollTrainer(model, closeness, population_size=6, **options)
        return model, trainer, torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.5)

    def go(trainer, scheduler, generations):
        for _ in range(generations):
            trainer.step()
            scheduler.step()

    model, trainer, scheduler = make()
    go(trainer, scheduler, 2)
    saved = trainer.state_dict(), scheduler.state_dict()
    go(trainer, scheduler, 2)
    other, resumed, other_scheduler = make()
    resumed.load_state_dict(saved[0])
    other_scheduler.load_state_dict(saved[1])
    go(resumed, other_scheduler, 2)
    assert resumed.history == trainer.history
    assert resumed.best_fitness == trainer.best_fitness
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match=r"0\.bias"):
        EggrollTrainer(mlp(), closeness, freeze_nonlora=True).load_state_dict(saved[0])


def test_learning_rate_schedulers_scale_the_steps():
    model = mlp()
    trainer = EggrollTrainer(model, closeness, population_size=8, noise_reuse=100, learning_rate=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, gamma=0.1)
    first = trainer.step()["update_norm"]
    scheduler.step()
    assert trainer.step()["update_norm"] == pytest.approx(first / 10, rel=0.05)


def test_frozen_parameters_stay():
    model = mlp()
    model[0].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5)  # noqa: E731
    EggrollTrainer(model, closeness, population_size=4, freeze_nonlora=True, optimizer=optimizer).train(2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"2.weight"}


def test_subclasses_may_sample_and_update_their_own_way():
    class Signs(ESTrainer):
        """Rademacher noise, steps of fixed size."""

        def sample_perturbations(self, pairs):
            return {name: e.sign() for name, e in super().sample_perturbations(pairs).items()}

        def compute_update(self, fitness):
            return {name: step.sign() for name, step in super().compute_update(fitness).items()}

    model = mlp()
    trainer = Signs(model, closeness, population_size=64, learning_rate=0.01, sigma=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = closeness(model)
    trainer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close((p - before[name]).abs(), torch.full_like(p, 0.01), rtol=1e-3, atol=1e-6)
    trainer.train(50)
    assert closeness(model) > start / 2


def test_what_vmap_cannot_do_goes_on_one_member_at_a_time(caplog):
    trainer = EggrollTrainer(mlp(), lambda m: torch.tensor(m(X).sum().item()), population_size=4, batched=True)
    assert trainer.step()["std_fitness"] > 0
    assert not trainer.batched
    assert "batched=True cannot be had" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 1}, "at least 2"),
        ({"rank": 0}, "noise rank"),
        ({"step_rule": "sgd"}, "upstream, eggroll, textbook or output"),
        ({"noise_reuse": 0}, "noise_reuse"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        EggrollTrainer(mlp(), closeness, **options)


def test_groups_must_divide_the_population():
    with pytest.raises(ValueError, match="group_size"):
        EggrollTrainer(mlp(), closeness, population_size=6, group_size=4).step()


def test_the_package_imports_without_torch():
    code = "import sys, t2ialign_eggroll.plugin; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", [EggrollTrainer, OpenESTrainer])
def test_modules_of_16_bits_train_by_steps_below_their_rounding(kind, batched, dtype, caplog):
    def score(model):
        return -F.mse_loss(model(X.to(dtype)).float(), Y)

    model = mlp().to(dtype)
    rate = 0.3 if kind is EggrollTrainer else 0.02
    trainer = kind(model, score, population_size=32, learning_rate=rate, sigma=0.05, batched=batched)
    start = score(model)
    trainer.train(60)
    assert trainer.batched == batched
    assert not caplog.records
    assert score(model) > start / 2
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.dtype for p in trainer.best_parameters.values()} == {dtype}
    small = kind(mlp().to(dtype), score, population_size=32, learning_rate=rate / 1000, sigma=0.05, batched=batched)
    small.train(3)
    resumed = kind(mlp(1).to(dtype), score, population_size=32, learning_rate=rate / 1000, sigma=0.05, batched=batched)
    resumed.load_state_dict(small.state_dict())
    for trainer in (small, resumed):
        trainer.train(3)
    before, after = small.state_dict()["parameters"], resumed.state_dict()["parameters"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(bool((before[name] != p).any()) for name, p in mlp().to(dtype).float().named_parameters())


@pytest.mark.parametrize("batched", [False, True])
def test_modules_of_mixed_precision_train(batched):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.net[0].to(torch.bfloat16)

        def forward(self, x):
            return self.net[2](self.net[0](x.to(torch.bfloat16)).relu().float())

    model = Half()
    start = closeness(model)
    trainer = EggrollTrainer(model, closeness, population_size=32, learning_rate=0.3, sigma=0.05, batched=batched)
    trainer.train(60)
    assert closeness(model) > start / 2
    assert {n: p.dtype for n, p in trainer.best_parameters.items()} == {n: p.dtype for n, p in model.named_parameters()}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda y: y, r"a tensor of shape \(32, 2\)"),
        (lambda y: y.mean() * 1j, "a complex number"),
        (lambda y: y.detach().numpy(), "ndarray"),
        (lambda y: [y.mean().item()], "list"),
        (lambda y: None, "NoneType None"),
        (lambda y: "good", "str 'good'"),
    ],
    ids=["tensor", "complex", "array", "list", "none", "text"],
)
def test_what_is_not_one_number_is_refused(batched, score, says):
    with pytest.raises(ValueError, match=f"must return one number, not {says}"):
        EggrollTrainer(mlp(), lambda model: score(model(X)), population_size=4, batched=batched).step()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "score",
    [float, lambda y: y.detach().numpy(), lambda y: y.detach().double().numpy()[()], lambda y: y[None]],
    ids=["float", "array", "numpy-number", "one-element"],
)
def test_numbers_of_all_kinds_are_scores(batched, score):
    found = EggrollTrainer(mlp(), lambda model: score(closeness(model)), population_size=4, batched=batched).evaluate()
    assert torch.allclose(found, EggrollTrainer(mlp(), closeness, population_size=4).evaluate())


@pytest.mark.parametrize(
    ("later", "words"),
    [(9.0, "none has had a higher one: if that is the most"), (-9.0, "earlier ones differed and reached")],
)
def test_a_fitness_that_becomes_constant_is_not_said_to_depend_on_nothing(caplog, later, words):
    """At a ceiling every member has the highest score; lost in a plain, all have one that is lower than before."""
    calls = []

    def fitness(model):
        calls.append(float(closeness(model)))
        return calls[-1] if len(calls) <= 4 else later

    EggrollTrainer(mlp(), fitness, population_size=4).train(4)
    (told,) = [record.message for record in caplog.records if "same fitness" in record.message]
    assert told.startswith(f"all members have the same fitness, {later:g}")
    assert words in told


def test_a_constant_fitness_is_named_once(caplog):
    EggrollTrainer(mlp(), lambda model: 1.0, population_size=4).train(3)
    assert [record.message for record in caplog.records if "same fitness" in record.message] == [
        "all members have the same fitness, 1: it does not depend on the trained parameters (random numbers"
        " are the same for all members), or sigma is too small to show"
    ]
