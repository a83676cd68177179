"""The optimizers on the toy world of the shared fixtures: two linear layers, exact rewards."""

import json

import misfits
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import t2ialign
from t2ialign import SpecError, UsageError
from t2ialign.errors import RewardError
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World
from t2ialign.testing import installed, toy
from t2ialign_diffusers import compilation
from t2ialign_diffusers.compilation import compile_forward
from t2ialign_eggroll import checks, plugin
from t2ialign_eggroll.config import EggrollConfig
from t2ialign_eggroll.noise import Noise
from t2ialign_rewards.random_control import RandomControl


class Biased(toy.ToyBackend):
    """The toy model with a constant part in its text, which a LoRA can turn into a shift of the colours."""

    def encode(self, prompts):
        conditioning = super().encode(prompts)
        return Conditioning(conditioning.prompts, {k: 3 + 0.3 * t for k, t in conditioning.tensors.items()})


class Plugin:
    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_backends(register):
        register("toy-biased", Biased, provides={"diffusion", "denoiser", "lora", "one-step"})

    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_rewards(register):
        register("random", RandomControl)


QUIET = Display(quiet=True)
#: Three pairs cannot show that a reward means anything: whole steps.
SMALL = {"kind": "eggroll", "population": 6, "gain": "none"}


@pytest.fixture
def eggroll_spec(toy_spec, tmp_path):
    """Write and load a toy spec with our optimizers registered; keyword arguments replace tables."""

    def load(optimizer=SMALL, run=None, **tables):
        tables["run"] = {"steps": 4, "out": str(tmp_path / "runs"), **(run or {})}
        tables = {"prompts": {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 2}, **tables}
        return specs.load(toy_spec(optimizer=optimizer, **tables))

    with installed(misfits, plugin, Plugin):
        yield load


def ready(spec, world=None):
    problem = assemble(spec, world)
    return load_optimizer(problem)


def fitness_of(spec, steps=1):
    optimizer = ready(spec)
    lines = [optimizer.step(index).metrics for index in range(steps)]
    return lines, optimizer.state().tensors


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "eggroll", "population": 16},
        {"kind": "eggroll", "population": 16, "step_rule": "upstream", "train": ["B"], "learning_rate": 0.5},
        {"kind": "open-es", "population": 16},
        {"kind": "eggroll", "population": 16, "parameters": "weights"},
        {"kind": "eggroll", "population": 16, "train": ["A", "B"], "noise_rank": 2},
        {
            "kind": "eggroll",
            "population": 16,
            "sigma_scale": "absolute",
            "sigma": 0.05,
            "step_rule": "upstream",
            "learning_rate": 4.0,
        },
        {"kind": "eggroll", "population": 16, "solver": "adam", "learning_rate": 0.1, "shaping": "zscore"},
        {"kind": "eggroll", "population": 15, "shaping": "centred-rank", "step_rule": "eggroll", "learning_rate": 2.0},
        {"kind": "eggroll", "population": 16, "antithetic": False, "shaping": "prompt-zscore"},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_the_reward_rises_on_held_out_noise(eggroll_spec, optimizer):
    backend = {
        "kind": "toy-biased",
        "checkpoint": "some/model",
        "dtype": "float32",
        "lora": {"rank": 1, "init": "activations"},
    }
    run = runner.start(eggroll_spec(optimizer, run={"steps": 30}, backend=backend), QUIET)
    gain = json.loads((run.path / "evaluation" / "summary.json").read_text())["paired"]["tuned"]["toy-redness"]
    assert gain["difference"] > 5 * gain["se"] > 0
    assert gain["difference"] > 0.01


@pytest.mark.parametrize("form", ["materialised", "factored", "merged", "sequential"])
def test_forms_agree(eggroll_spec, form):
    expected, tensors = fitness_of(eggroll_spec(), 2)
    found, others = fitness_of(eggroll_spec({**SMALL, "form": form}), 2)
    for line, other in zip(expected, found, strict=True):
        assert other == pytest.approx(line, rel=1e-4, abs=1e-6)
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 4, 7, 64])
@pytest.mark.parametrize("parameters", ["lora", "weights"])
def test_the_micro_batch_changes_nothing(eggroll_spec, micro_batch, parameters):
    optimizer = {**SMALL, "parameters": parameters}
    expected, tensors = fitness_of(eggroll_spec(optimizer, run={"micro_batch": 12}), 2)
    found, others = fitness_of(eggroll_spec(optimizer, run={"micro_batch": micro_batch}), 2)
    for line, other in zip(expected, found, strict=True):
        assert other == pytest.approx(line, rel=1e-4, abs=1e-6)
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_step_repeats_its_prompts_as_often_as_upstream_with_a_seed_for_every_image(eggroll_spec, golden):
    """Upstream repeats the list of prompts, sometimes with equal images; ours keeps the images of a prompt together."""
    block = golden("t2i/sampling")
    drawn, repeats = block["repeat_in"].tolist(), int(block["repeat_n"])
    counts = {"per_step": len(drawn), "images_per_prompt": repeats}
    batch = ready(eggroll_spec(prompts={"file": "prompts.txt", **counts})).problem.draw(0)
    assert batch.prompt_index.tolist() == sorted(drawn.index(prompt) for prompt in block["repeat_out"].tolist())
    assert len(set(batch.seeds)) == len(block["repeat_out"])


@pytest.mark.parametrize("parameters", ["lora", "weights"])
def test_a_compiled_network_gives_the_same_steps_and_stops_compiling(eggroll_spec, monkeypatch, parameters):
    """4 members at a time, then 2; the checks before the first step have other sizes again."""
    spec = eggroll_spec({**SMALL, "parameters": parameters}, run={"micro_batch": 24})
    graphs = []
    torch.compiler.reset()
    monkeypatch.setattr(compilation, "BACKEND", lambda graph, inputs: graphs.append(graph) or graph)
    plain, compiled = ready(spec), ready(spec)
    compile_forward(compiled.problem.backend.trainable, "default")
    counts = []
    for index in range(3):
        assert compiled.step(index).metrics == pytest.approx(plain.step(index).metrics, rel=1e-5, abs=1e-6)
        counts.append(len(graphs))
    assert 0 < counts[0] <= 6
    assert counts[0] == counts[2]
    for name, tensor in plain.state().tensors.items():
        torch.testing.assert_close(compiled.state().tensors[name], tensor)


def test_a_step_looks_at_the_device_equally_often_whatever_the_micro_batch(eggroll_spec):
    """Reading a number makes the host wait for the device, which must not happen for every batch of members."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    counts = []
    for micro_batch in (6, 36):  # one member at a time, all six
        optimizer = ready(eggroll_spec(run={"micro_batch": micro_batch}))
        optimizer.prepare()
        with Reads() as reads:
            optimizer.step(0)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def test_a_score_that_is_not_finite_stops_the_step_with_its_image(eggroll_spec, monkeypatch):
    """The scores are looked at when all are there; the image is the one that the member had."""
    optimizer = ready(eggroll_spec())
    optimizer.prepare()
    problem, seen, original = optimizer.problem, [], toy.Redness.score

    def score(self, images, prompts):
        seen.append(images)
        values = original(self, images, prompts)
        return values.index_fill(0, torch.tensor([20]), torch.nan)  # six images a member: the third of member 3

    monkeypatch.setattr(toy.Redness, "score", score)
    prompt = problem.draw(0).conditioning.prompts[2]
    with pytest.raises(RewardError, match=f"'toy-redness' is nan for prompt '{prompt}'") as caught:
        optimizer.step(0)
    torch.testing.assert_close(caught.value.image, seen[0][20])


class Ranks(World):
    """One of several processes that take turns: ``gather`` joins what the others left in ``box``."""

    def __init__(self, rank, box):
        super().__init__(rank, 2)
        object.__setattr__(self, "box", box)

    def gather(self, tensor):
        self.box[self.rank] = tensor
        return torch.cat([self.box.get(rank, torch.full_like(tensor, torch.nan)) for rank in range(self.size)])


@pytest.mark.parametrize("population", [6, 7])
def test_ranks_share_the_population(eggroll_spec, population):
    """The scores that two ranks gather are those that one process computes."""
    spec = eggroll_spec({"kind": "eggroll", "population": population})
    alone = ready(spec)
    alone.prepare()
    expected = alone._evaluate(0, alone.problem.draw(0))
    box = {}
    for rank in range(2):
        member = ready(spec, Ranks(rank, box))
        member.prepare()
        found = member._evaluate(0, member.problem.draw(0))
    for name, scores in expected.items():
        assert scores.isfinite().all()
        torch.testing.assert_close(found[name], scores)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("parameters", ["lora", "weights"])
def test_a_resumed_run_equals_an_uninterrupted_one(eggroll_spec, solver, parameters):
    spec = eggroll_spec({"kind": "eggroll", "population": 12, "solver": solver, "parameters": parameters})
    whole = ready(spec)
    first = ready(spec)
    for index in range(2):
        whole.step(index)
        first.step(index)
    second = ready(spec)
    second.load_state(first.state())
    for index in (2, 3):
        assert second.step(index) == whole.step(index)
    for name, tensor in whole.state().tensors.items():
        assert torch.equal(second.state().tensors[name], tensor)


def test_the_runs_seed_decides_the_step(eggroll_spec):
    first, again, other = (fitness_of(eggroll_spec(run={"seed": seed})) for seed in (3, 3, 4))
    assert first[0] == again[0]
    for name, tensor in first[1].items():
        assert torch.equal(tensor, again[1][name])
        assert not torch.isclose(tensor, other[1][name], rtol=1e-3).all()


def test_evaluation_leaves_every_weight_bit_identical(eggroll_spec):
    for form in ("auto", "sequential"):
        optimizer = ready(eggroll_spec({**SMALL, "form": form}))
        module = optimizer.problem.adapter.module
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        optimizer.prepare()
        optimizer._evaluate(0, optimizer.problem.draw(0))
        for name, p in module.named_parameters():
            assert torch.equal(p, before[name])


def test_a_broken_member_is_dropped_and_reported(eggroll_spec):
    spec = eggroll_spec(
        reward=[{"kind": "toy-redness"}, {"kind": "toy-broken"}],
        run={"steps": 2, "nonfinite": "drop"},
        prompts={"file": "prompts.txt", "per_step": 5, "images_per_prompt": 1},
    )
    (line, *_), tensors = fitness_of(spec)
    assert line["population/nonfinite"] == 1.0  # 'blue' is NaN for every member: that prompt counts for nothing
    assert line["update/norm"] > 0
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_constant_reward_makes_no_update_and_warns(eggroll_spec, caplog):
    spec = eggroll_spec(reward=[{"kind": "toy-redness", "normalise": "range", "range": [-1e30, 1e30]}])
    (line, *_), _ = fitness_of(spec)
    assert line["fitness/constant"] == 1.0
    assert line["update/norm"] == 0.0
    assert "no update" in caplog.text


def test_relative_sigma_is_the_relative_change_of_a_layers_output(eggroll_spec):
    optimizer = ready(eggroll_spec({"kind": "eggroll", "population": 400, "sigma": 0.3}))
    problem = optimizer.problem
    optimizer.prepare()
    layer = problem.adapter.layers["0"]
    inputs = []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batch = problem.draw(0)
    problem.generate(batch.conditioning, batch.seeds)
    handle.remove()
    x = torch.cat(inputs)
    noise = optimizer.member_noise(0, slice(0, 400))["0.lora_B.weight"].dense()
    hidden = x @ layer.lora_A["default"].weight.detach().T
    change = problem.adapter.scaling * torch.einsum("nor,br->nbo", noise, hidden)
    base = layer.base_layer(x)
    # Each of the r = 2 columns of B changes the output by sigma.
    assert change.square().mean().sqrt() / base.square().mean().sqrt() == pytest.approx(0.3 * 2**0.5, rel=0.1)


def test_a_bypassed_layer_is_refused_by_name(eggroll_spec, monkeypatch):
    def bypass(self, x, t):
        text = self.conditioning.tensors["prompt_embeds"]
        hidden = torch.tanh(self.net[0](torch.cat([x.flatten(1), text], 1)))
        second = getattr(self.net[2], "base_layer", self.net[2])
        return t2ialign.Prediction((hidden @ second.weight.T + second.bias).view_as(x), x)

    monkeypatch.setattr(toy.ToyDenoiser, "predict", bypass)
    for form in ("auto", "sequential"):
        optimizer = ready(eggroll_spec({**SMALL, "form": form, "sigma_scale": "absolute"}))
        with pytest.raises(UsageError, match=r"perturbation of 2 changes no image.*backend\.lora\.targets"):
            optimizer.step(0)
    with pytest.raises(UsageError, match="2 gives nothing but zeros, or are never called"):
        ready(eggroll_spec()).step(0)


def test_layers_that_the_first_answer_shows_cost_no_image(eggroll_spec, monkeypatch):
    """A layer that matters in a later evaluation alone is found by the image."""
    optimizer = ready(eggroll_spec({**SMALL, "sigma_scale": "absolute"}))
    optimizer.prepare()
    problem, drawn = optimizer.problem, []
    render = type(problem).render
    monkeypatch.setattr(type(problem), "render", lambda self, *given: drawn.append(1) or render(self, *given))
    noise = optimizer.member_noise(0, slice(0, 1))
    given = (problem, optimizer.space, noise, problem.draw(0), optimizer.form, problem.micro_batch)
    checks.every_layer_matters(*given)
    assert not drawn

    def late(self, x, t):
        if t[0] != self.path.t_start:
            return predict(self, x, t)
        hidden = self.net[0](torch.cat([x.flatten(1), self.conditioning.tensors["prompt_embeds"]], 1))
        return t2ialign.Prediction(torch.cat([hidden, hidden[:, :16]], 1).view_as(x), x)

    def twice(self, denoiser, noise, seeds=None):
        return denoiser(denoiser(noise, denoiser.path.t_start).x0, 0.5).x0

    predict = toy.ToyDenoiser.predict
    monkeypatch.setattr(toy.ToyDenoiser, "predict", late)
    monkeypatch.setattr(type(problem.sampler), "sample", twice)
    checks.every_layer_matters(*given)
    assert drawn == [1]


def test_a_wrong_row_layout_is_caught(eggroll_spec, monkeypatch):
    """A backend that shuffles its batch without announcing it."""

    def shuffled(self, x, t):
        text = self.conditioning.tensors["prompt_embeds"]
        x0 = self.net(torch.cat([x.flatten(1), text], 1).flip(0)).flip(0)
        return t2ialign.Prediction(x0.view_as(x), x)

    monkeypatch.setattr(toy.ToyDenoiser, "predict", shuffled)
    with pytest.raises(t2ialign.T2IAlignError, match=r"one batch differ.*sequential"):
        ready(eggroll_spec()).step(0)
    ready(eggroll_spec({**SMALL, "form": "sequential"})).step(0)


def test_weights_mode_delivers_the_nearest_lora(eggroll_spec):
    optimizer = ready(eggroll_spec({**SMALL, "parameters": "weights"}, run={"steps": 5}))
    for index in range(5):
        optimizer.step(index)
    batch = optimizer.problem.draw(0)
    optimizer.generate(batch.conditioning, batch.seeds)
    for name, layer in optimizer.problem.adapter.layers.items():
        delta = optimizer.space.parameters[f"{name}.weight"].detach()
        u, s, vh = torch.linalg.svd(delta)
        best = u[:, :2] * s[:2] @ vh[:2]
        lora = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * optimizer.problem.adapter.scaling
        torch.testing.assert_close(lora.detach(), best, rtol=1e-3, atol=1e-5)


def test_caps_hold(eggroll_spec):
    (first, second), _ = fitness_of(
        eggroll_spec({**SMALL, "max_step_norm": 1e-3, "max_norm": 1.5e-3, "learning_rate": 0.3, "train": ["B"]}), 2
    )
    assert first["update/norm"] == pytest.approx(1e-3, rel=1e-3)
    assert second["parameters/norm"] <= 1.5e-3 * (1 + 1e-4)


def test_the_learning_rate_follows_the_schedule(eggroll_spec):
    lines, _ = fitness_of(eggroll_spec({**SMALL, "schedule": "linear", "final_fraction": 0.0}), 4)
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.03, 0.0225, 0.015, 0.0075])


def relative_change(optimizer, name="0"):
    """Mean square of what the LoRA adds to a layer's output, over that of the output."""
    problem = optimizer.problem
    layer, inputs = problem.adapter.layers[name], []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batch = problem.draw(0)
    optimizer.generate(batch.conditioning, batch.seeds)
    handle.remove()
    x = torch.cat(inputs)
    base = layer.base_layer(x)
    return ((layer(x) - base).square().mean() / base.square().mean()).item()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "eggroll", "population": 64, "noise_rank": 8},
        {"kind": "open-es", "population": 16, "antithetic": False, "shaping": "zscore"},
        {"kind": "open-es", "population": 64},
        {"kind": "open-es", "population": 16, "sigma": 0.01},
        {"kind": "open-es", "population": 16, "rank": 4},
        {"kind": "open-es", "population": 16, "train": ["B"], "solver": "adam"},
        {"kind": "eggroll", "population": 64, "parameters": "weights", "noise_rank": 4, "rank": 48},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_a_step_changes_a_layers_output_by_the_learning_rate(eggroll_spec, options):
    """Whatever sigma, the population and the LoRA's rank are, in the mean over seeds."""
    options = {"gain": "none", "learning_rate": 0.05, **options}
    lora = {"rank": options.pop("rank", 2)}
    backend = {"kind": "toy-biased", "checkpoint": "some/model", "dtype": "float32", "lora": lora}
    changes = []
    for seed in range(12):
        optimizer = ready(eggroll_spec(options, run={"seed": seed}, backend=backend))
        optimizer.step(0)
        changes.append(relative_change(optimizer))
    assert torch.tensor(changes).mean().sqrt().item() == pytest.approx(0.05, rel=0.3)


def test_a_random_reward_holds_the_steps_and_says_so(eggroll_spec, caplog):
    spec = eggroll_spec(
        {"kind": "eggroll", "population": 16},
        run={"steps": 12},
        reward=[{"kind": "random"}, {"kind": "toy-redness", "weight": 0.0}],
        prompts={"file": "prompts.txt", "per_step": 5},
    )
    lines, _ = fitness_of(spec, 12)
    gains = torch.tensor([line["step/gain"] for line in lines])
    assert gains.mean() < 0.2
    held = int((gains == 0).sum())
    assert held > 6
    assert [line["update/norm"] == 0 for line in lines] == (gains == 0).tolist()
    assert f"{held} of 12 steps were held at zero length" in caplog.text
    assert "the reward did not distinguish the members beyond chance" in caplog.text


def test_a_run_without_a_single_step_ends_well_and_says_that_its_lora_is_zero(eggroll_spec):
    spec = eggroll_spec({"kind": "eggroll", "population": 2, "gain": "signal"}, reward=[{"kind": "random"}])
    run = runner.start(spec, QUIET)
    assert "the LoRA is zero" in (run.path / "export" / "README.md").read_text()
    paired = json.loads((run.path / "evaluation" / "summary.json").read_text())["paired"]["tuned"]
    assert paired["random"]["difference"] == 0


def test_a_real_reward_gets_whole_steps(eggroll_spec):
    backend = {"kind": "toy-biased", "checkpoint": "some/model", "dtype": "float32"}
    spec = eggroll_spec({"kind": "eggroll", "population": 16}, backend=backend, run={"steps": 5})
    lines, _ = fitness_of(spec, 5)
    assert lines[-1]["step/gain"] == 1
    assert 0 < lines[-1]["step/signal"] < 1
    assert lines[-1]["fitness/F"] > 1


def test_the_signal_needs_two_images(eggroll_spec):
    one = {"file": "prompts.txt", "per_step": 1, "images_per_prompt": 1}
    with pytest.raises(SpecError, match="gain = 'none'"):
        eggroll_spec({"kind": "eggroll", "population": 8, "gain": "signal"}, prompts=one)
    eggroll_spec({**SMALL, "gain": "none"}, prompts=one)
    eggroll_spec({**SMALL, "step_rule": "upstream"}, prompts=one)


@pytest.mark.parametrize(("population", "images", "used"), [(16, 4, True), (14, 4, False), (16, 3, False)])
def test_few_members_or_images_get_whole_steps_and_validate_says_so(eggroll_spec, population, images, used):
    prompts = {"file": "prompts.txt", "per_step": images, "images_per_prompt": 1}
    spec = eggroll_spec({"kind": "eggroll", "population": population}, prompts=prompts)
    assert spec.optimizer_config.uses_signal(images) is used
    assert ("gain" in spec.optimizer_config.plan(spec).notes) is not used


def test_steps_of_a_published_code_are_not_shortened_unless_asked(eggroll_spec):
    for options, shortened in [({}, False), ({"gain": "signal"}, True)]:
        (line,), _ = fitness_of(eggroll_spec({**SMALL, "step_rule": "upstream", **options}))
        assert ("step/gain" in line) is shortened


def test_export_loads_in_a_fresh_backend(eggroll_spec):
    for parameters in ("lora", "weights"):
        run = runner.start(eggroll_spec({**SMALL, "parameters": parameters}), QUIET)
        tensors = load_file(run.path / "export" / "pytorch_lora_weights.safetensors")
        assert {"transformer.0.lora_A.weight", "transformer.0.lora_B.weight"} <= tensors.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "optimizer.population"),
        ({"antithetic": False}, "set antithetic = true"),
        ({"train": ["A"]}, "must include 'B'"),
        ({"shaping": "zscored"}, "zscore"),
        ({"sigma": -1.0}, "optimizer.sigma"),
        ({"learning_rate": 0.5, "step_rule": "output"}, "step_rule = 'upstream'"),
    ],
)
def test_bad_options_are_one_clear_error(eggroll_spec, options, message):
    with pytest.raises(SpecError, match=message):
        eggroll_spec({**SMALL, **options})


def test_the_plan_counts_images_and_forwards(eggroll_spec):
    spec = eggroll_spec({"kind": "eggroll", "population": 10}, run={"micro_batch": 13})
    plan = EggrollConfig(population=10).plan(spec)
    assert plan.images_per_step == 60
    assert plan.notes["forwards per step"] == "5"  # 6 images a member, 2 members a forward


def test_the_noise_in_memory_does_not_grow_with_the_population(eggroll_spec, monkeypatch):
    original, most = Noise.draw, []
    monkeypatch.setattr(
        Noise, "draw", lambda self, seeds, device: most.append(len(seeds)) or original(self, seeds, device)
    )
    peaks = []
    for population in (64, 512):
        most.clear()
        fitness_of(eggroll_spec({"kind": "eggroll", "population": population}, run={"micro_batch": 48}))
        peaks.append(max(most))
    assert peaks[0] == peaks[1] <= 32


def test_out_of_memory_halves_the_batch_and_changes_nothing(eggroll_spec, monkeypatch):
    expected, tensors = fitness_of(eggroll_spec())
    original = toy.ToyBackend.decode

    def decode(self, latents):
        if len(latents) > 9:
            raise torch.OutOfMemoryError("too many images")
        return original(self, latents)

    monkeypatch.setattr(toy.ToyBackend, "decode", decode)
    ready(eggroll_spec({**SMALL, "sigma_scale": "absolute"})).step(0)  # the checks come first here
    found, others = fitness_of(eggroll_spec())
    assert found[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)
