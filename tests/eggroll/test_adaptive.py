"""ClipUp, PGPE, SNES and OpenAI-ES against numbers of evotorch, evosax and OpenAI, and what the trainers add."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from t2ialign_eggroll import CEMTrainer, ClipUp, EggrollTrainer, OpenESTrainer, PGPETrainer, SNESTrainer
from t2ialign_eggroll.noise import FullRank
from t2ialign_eggroll.shaping import shape
from t2ialign_eggroll.trainers.adaptive import AdaptiveTrainer

FILE = Path(__file__).parent.parent / "golden" / "es_search.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["config"])
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # fitness and weights are float32 here

OPTIMIZERS = {
    "clipup": lambda p, a, o: ClipUp(p, a, **o),
    "adam": lambda p, a, o: torch.optim.Adam(p, a, (o["beta1"], o["beta2"]), o["epsilon"]),
    "sgd": lambda p, a, o: torch.optim.SGD(p, a, **o),
    None: lambda p, a, o: torch.optim.SGD(p, a),
}
#: Rankings of evotorch; PGPE centres those that are not centred.
SHAPINGS = {"centered": "centred-rank", "linear": "centred-rank", "normalized": "zscore", "nes": "nes"}
SHAPINGS |= {"raw": "centred", None: "centred"}
LIMITS = {"spread_min": "stdev_min", "spread_max": "stdev_max", "max_change": "stdev_max_change"}


class Point(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.x = nn.Parameter(start.clone())


def f1(x):
    j = torch.arange(len(x), dtype=x.dtype)
    return -((1 + j / 2) * (x - torch.sin(j + 1)).square()).sum()


def f2(x):
    return -(100 * (x[1:] - x[:-1] ** 2).square() + (1 - x[:-1]).square()).sum()


def numbers(text):
    """The start and the factor of a schedule such as "0.05 * 0.9^step", or of a constant."""
    found = [float(number) for number in re.findall(r"(?<![\w.])\d*\.\d+", str(text))]
    return found[0], found[1] if len(found) > 1 else 1.0


def recorded(kind, case, function, **options):
    """A trainer of the case whose noise is the recorded one; fitness in float64 as there."""

    class Recorded(kind):
        spread = None

        def sample_perturbations(self, pairs):
            z = GOLDEN[f"{case}/{function}/z"][self.generation][list(pairs)]
            return {"x": FullRank(z if self.spread is None else z * self.spread["x"])}

    score = {"f1": f1, "f2": f2}[function]
    model = Point(GOLDEN[f"{case}/{function}/center_init"])
    adaptive = issubclass(kind, AdaptiveTrainer)
    if adaptive:
        options |= {"sigma": 1.0, "scale": "relative"}
    trainer = Recorded(model, lambda m: score(m.x), **options)
    if adaptive:
        trainer.spread = {"x": GOLDEN[f"{case}/{function}/sigma_init"].expand(len(model.x)).clone()}
    return trainer


def followed(trainer, case, function, *, pairs_first=False, after=lambda: None):
    """
    Args:
        pairs_first: all members of sign + are recorded before those of sign -.
    """
    for generation in range(CASES["generations"]):
        scores = trainer.evaluate().double()
        expected = GOLDEN[f"{case}/{function}/fitness"][generation].flatten()
        expected = expected.view(2, -1).T.flatten() if pairs_first else expected
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        trainer.step()
        torch.testing.assert_close(trainer.model.x.detach(), GOLDEN[f"{case}/{function}/center"][generation], **CLOSE)
        if trainer.spread is not None:
            torch.testing.assert_close(trainer.spread["x"], GOLDEN[f"{case}/{function}/sigma"][generation], **CLOSE)
        after()


def cases(prefix):
    return pytest.mark.parametrize("case", [case for case in CASES if case.startswith(prefix)])


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("pgpe_")
def test_pgpe_is_evotorchs(case, function):
    config = CASES[case]
    bounds = {ours: config[theirs] for ours, theirs in LIMITS.items() if theirs in config}
    followed(
        recorded(
            PGPETrainer,
            case,
            function,
            population_size=config["popsize"],
            antithetic=config.get("symmetric", True),
            sigma_learning_rate=config["stdev_learning_rate"],
            shaping=SHAPINGS[config.get("ranking_method", "centered")],
            optimizer=lambda p: OPTIMIZERS[config.get("optimizer", "clipup")](
                p, config["center_learning_rate"], config.get("optimizer_config", {})
            ),
            **bounds,
        ),
        case,
        function,
    )


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("cem")
def test_cem_is_evotorchs(case, function):
    config = CASES[case]
    bounds = {ours: config[theirs] for ours, theirs in LIMITS.items() if theirs in config}
    options = {"population_size": config["popsize"], "elite_share": config["parenthood_ratio"], "max_change": None}
    followed(recorded(CEMTrainer, case, function, **(options | bounds)), case, function)


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("snes")
def test_snes_is_evotorchs(case, function):
    config = CASES[case]
    options = {} if case == "snes" else {"population_size": config["popsize"]}
    options |= {ours: config[theirs] for ours, theirs in LIMITS.items() if theirs in config}
    options |= {"shaping": SHAPINGS[config.get("ranking_method", "nes")], "learning_rate": 1.0}
    if "optimizer" in config:
        options["optimizer"] = lambda p: ClipUp(p, config["center_learning_rate"])
    if "stdev_learning_rate" in config:
        size = CASES["dim"]
        natural = 0.2 * (3 + math.log(size)) / math.sqrt(size) if config["scale_learning_rate"] else 1
        options["sigma_learning_rate"] = natural * config["stdev_learning_rate"]
    trainer = recorded(SNESTrainer, case, function, **options)
    assert trainer.members.count == config["popsize"]
    followed(trainer, case, function)


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("evosax_")
def test_pgpe_and_snes_are_evosaxs(case, function):
    config = CASES[case]
    if "snes" in case:
        options = {"population_size": config["popsize"], "learning_rate": 1.0}
        return followed(recorded(SNESTrainer, case, function, **options), case, function)
    trainer = recorded(
        PGPETrainer,
        case,
        function,
        population_size=config["popsize"],
        sigma_learning_rate=config["std_lr"],
        max_change=config["std_max_change"],
        shaping="centred-rank",
        optimizer=lambda p: ClipUp(p, config["learning_rate"], config["momentum"], config["max_velocity"]),
    )
    return followed(trainer, case, function, pairs_first=True)


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("openes_")
def test_open_es_is_evosaxs(case, function):
    """Its generations 0 and 1 have the same sigma: a schedule is asked after the update."""
    config = CASES[case]
    rate, rate_factor = numbers(config["learning_rate"])
    sigma, sigma_factor = numbers(config["std"])
    decay = re.search(r"weight_decay ([.\d]+)", config["optimizer"])
    momentum = re.search(r"momentum ([.\d]+)", config["optimizer"])
    trainer = recorded(
        OpenESTrainer,
        case,
        function,
        population_size=config["popsize"],
        sigma=sigma,
        sigma_schedule=lambda g: sigma_factor ** max(0, g - 1),
        shaping="zscore-biased" if "shaping" in config else "centred-rank",
        optimizer=lambda p: (
            torch.optim.SGD(p, rate, momentum=float(momentum[1]))
            if momentum
            else torch.optim.AdamW(p, rate, weight_decay=float(decay[1]) if decay else 0)
        ),
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, rate_factor)
    followed(trainer, case, function, pairs_first=True, after=schedule.step)


@pytest.mark.parametrize("function", ["f1", "f2"])
@cases("openai_")
def test_open_es_is_openais(case, function):
    """Theirs divides no gradient by sigma; ours divides the decay of the weights by it, too."""
    config = CASES[case]
    sigma, decay = config["noise_stdev"], config["l2coeff"] / config["noise_stdev"]

    def optimizer(p):
        if config["optimizer"] == "adam":
            return torch.optim.Adam(p, config["stepsize"], weight_decay=decay)
        momentum = config["momentum"]
        made = torch.optim.SGD(p, sigma * config["stepsize"], momentum=momentum, dampening=momentum, weight_decay=decay)
        made.state[p[0]]["momentum_buffer"] = torch.zeros_like(p[0])  # theirs begins at 0, torch's at the gradient
        return made

    trainer = recorded(
        OpenESTrainer,
        case,
        function,
        population_size=config["popsize"],
        sigma=sigma,
        shaping="centred-rank",
        optimizer=optimizer,
    )
    followed(trainer, case, function)


RANKINGS = {name.split("/")[1] for name in GOLDEN if name.startswith("ranking/")}


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("scores", sorted(RANKINGS))
def test_shapings_are_the_published_rankings(scores, direction):
    """Of tied scores only the average is defined; missing ones are the best of theirs, and left out here."""
    recorded = {name.split("/")[2]: value for name, value in GOLDEN.items() if name.startswith(f"ranking/{scores}/")}
    fitness = recorded["fitness"] if direction == "max" else -recorded["fitness"]
    if fitness.isnan().any():
        assert not shape(fitness, "centred-rank").used[fitness.isnan()].any()
        return
    close = {"rtol": 1e-6, "atol": 1e-8}
    if direction == "min":
        ranks = recorded["evosax_centered_min"]
        torch.testing.assert_close(shape(fitness, "centred-rank").values, -ranks, **close)
    if len(fitness.unique()) < len(fitness):
        return
    for theirs, ours in {**SHAPINGS, "openai_centered": "centred-rank"}.items():
        values = recorded.get(f"{theirs}_{direction}")
        if values is not None:
            values = values.reshape(fitness.shape)
            values = values - values.mean()  # "linear" and "raw" are centred by whoever uses them
            torch.testing.assert_close(shape(fitness, ours).values, values.double(), **close)


def test_snes_steps_as_far_with_any_population():
    """The length of rate times utilities along independent members; the published rate is that of the default."""
    lengths = {}
    for population in (None, 60, 240):
        trainer = SNESTrainer(Point(torch.zeros(40)), lambda m: m.x.sum(), population_size=population)
        rate, count = trainer.optimizer.param_groups[0]["lr"], trainer.members.count
        lengths[count] = rate * shape(torch.arange(count).float(), "nes").values.norm().item()
        assert rate == pytest.approx((count / 15) ** 0.5)
    assert lengths[240] == pytest.approx(lengths[15], rel=0.2)


def test_clipup_is_evotorchs():
    p = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    config = CASES["clipup"]
    optimizer = ClipUp([p], config["stepsize"], config["momentum"], config["max_speed"])
    for gradient, ascent in zip(GOLDEN["clipup/grads"], GOLDEN["clipup/ascents"], strict=True):
        before = p.detach().clone()
        p.grad = -gradient
        optimizer.step()
        torch.testing.assert_close(p.detach() - before, ascent, rtol=1e-6, atol=1e-9)


def test_clipup_survives_a_zero_gradient_and_follows_schedulers():
    p = nn.Parameter(torch.zeros(3))
    optimizer = ClipUp([p], lr=0.1)
    for gradient in ([0.0, 0.0, 0.0], [0.0, 3.0, 4.0]):
        p.grad = torch.tensor(gradient)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.0, -0.06, -0.08]))
    optimizer.param_groups[0]["lr"] = 0.01
    before = p.detach().clone()
    optimizer.step()
    assert (p.detach() - before).norm().item() == pytest.approx(0.02)


@pytest.mark.parametrize("bad", [{"lr": 0}, {"momentum": 1.0}, {"max_speed": -1.0}])
def test_clipup_refuses_impossible_numbers(bad):
    with pytest.raises(ValueError, match="ClipUp needs"):
        ClipUp([nn.Parameter(torch.zeros(1))], **bad)


def test_utilities_are_evotorchs_and_ties_share_theirs():
    scores = GOLDEN["ranking/distinct/fitness"].float()
    torch.testing.assert_close(
        shape(scores, "nes").values, GOLDEN["ranking/distinct/nes_max"].float(), rtol=1e-5, atol=1e-6
    )
    tied = shape(GOLDEN["ranking/ties/fitness"].float(), "nes").values
    assert tied.sum().abs() < 1e-6
    for value in GOLDEN["ranking/ties/fitness"].unique():
        assert len(tied[GOLDEN["ranking/ties/fitness"] == value].unique()) == 1
    assert bool((shape(torch.ones(6), "nes").values == 0).all())


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def closeness(model):
    return -(model(X) - X[:, :2] * 2).square().mean()


@pytest.mark.parametrize("per", ["entry", "layer"])
@pytest.mark.parametrize("kind", [PGPETrainer, SNESTrainer])
def test_sigma_adapts_and_resumes(kind, per):
    def make():
        return kind(net(), closeness, population_size=16, sigma_per=per, batched=True)

    trainer = make()
    start = closeness(trainer.model)
    trainer.train(40)
    assert closeness(trainer.model) > start / 2
    spread = trainer.spread["0.weight"]
    assert len(spread.unique()) == (1 if per == "layer" else 32)
    assert bool((spread != 1).any())
    resumed = make()
    resumed.load_state_dict(trainer.state_dict())
    for each in (trainer, resumed):
        each.train(2)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["clipup", "adam", "momentum", "sgd"])
def test_defaults_learn_with_every_optimizer_whatever_the_size_of_the_weights(optimizer):
    """Units make steps relative: a network of hundredfold weights behind a hundredth input learns the same way."""
    ends = []
    for factor in (1.0, 100.0):
        model = net()
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[0].bias.mul_(factor)

        def score(m, factor=factor):
            return -(m[2](torch.tanh(m[0](X) / factor)) - X[:, :2] * 2).square().mean()

        start = score(model)
        EggrollTrainer(model, score, population_size=32, optimizer=optimizer, batched=True).train(60)
        ends.append(score(model).item())
        assert ends[-1] > start / 2
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


@pytest.mark.parametrize("optimizer", ["clipup", "adam"])
def test_no_first_step_is_longer_than_the_noise(optimizer):
    """Of a small module, whose default steps are long; the noise of a layer has an rms of sigma units."""
    trainer = EggrollTrainer(net(), closeness, optimizer=optimizer, batched=True)
    size = sum(p.numel() for p in trainer.centre.values())
    assert trainer.step()["update_norm"] <= 1.01 * trainer.sigma * math.sqrt(size)


def test_weight_decay_pulls_towards_the_start_in_the_relative_scale():
    model = net()
    before = model[0].weight.detach().clone()
    trainer = EggrollTrainer(
        model, closeness, scale="relative", optimizer=lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=1.0)
    )
    trainer.centre["0.weight"].data.fill_(3.0)
    trainer.compute_update = lambda fitness: {name: torch.zeros_like(p) for name, p in trainer.centre.items()}
    trainer.step()
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_sigma_follows_its_schedule():
    seen = []
    trainer = EggrollTrainer(net(), closeness, population_size=4, sigma_schedule=lambda g: 0.5**g)
    for _ in range(3):
        seen.append(trainer._noise(slice(0, 1))["0.bias"].dense().norm().item() / trainer.current_sigma)
        trainer.step()
    assert trainer.current_sigma == pytest.approx(0.5 * 0.5**3)
    assert all(0 < value < 10 for value in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "both"}, "relative"),
        ({"optimizer": "lion"}, "clipup, adam, momentum, sgd"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EggrollTrainer(net(), closeness, **options)


def test_parameters_that_nothing_depends_on_are_named(caplog):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.used(x)

    for batched in (False, True):
        caplog.clear()
        EggrollTrainer(Idle(), closeness, population_size=4, batched=batched).train(2)
        assert [m for m in caplog.messages if "depends on" in m] == [
            "no member's fitness depends on idle.weight, idle.bias: the fitness function never reads it"
        ]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_fitness_that_is_no_number_is_told_once(share, caplog):
    calls = []

    def score(model):
        calls.append(0)
        return float("nan") if len(calls) % 2 == 0 or share == 1 else closeness(model)

    trainer = EggrollTrainer(net(), score, population_size=8)
    trainer.train(2)
    assert [m for m in caplog.messages if "no finite fitness" in m] == [
        f"{int(8 * share)} of 8 members have no finite fitness (NaN or infinite): they are left out of the update"
    ]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("where", ["inputs", "result"])
def test_another_device_is_one_clear_error(where, batched):
    def score(model):
        if where == "inputs":
            return model(X.to("meta")).sum()
        return closeness(model).to("meta")

    with pytest.raises(ValueError, match="the trained parameters are on cpu"):
        EggrollTrainer(net(), score, population_size=4, batched=batched).step()


def test_parameters_on_two_devices_are_named():
    model = net()
    model[2].to("meta")
    with pytest.raises(ValueError, match=r"one device: 0.weight on cpu.*2.weight on meta"):
        EggrollTrainer(model, closeness)
