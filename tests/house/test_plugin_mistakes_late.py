"""Mistakes that show later than at registration, or only in what options, lazy modules and ends of runs do."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import t2ialign
from t2ialign import cli, plugins
from t2ialign.errors import PartError, T2IAlignError
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.testing import toy
from t2ialign.testing.world import entry_point, installed, run_spec, write_spec


def registering(role, *arguments, **options):
    """A plugin whose one hook registers one part."""

    def hook(register):
        register(*arguments, **options)

    hook.__name__ = f"t2ialign_{role}s"
    return SimpleNamespace(**{hook.__name__: t2ialign.hookimpl(hook)}, __name__="mine")


def failing(tmp_path, plugin, **tables):
    with pytest.raises(T2IAlignError) as caught:
        run_spec(tmp_path, plugin, **tables)
    return str(caught.value)


def reward_with(score):
    return registering("reward", "bad", type("Bad", (t2ialign.Reward,), {"score": score}))


@pytest.mark.parametrize(
    ("role", "base", "part", "name"),
    [
        ("optimizer", t2ialign.OptimizerConfig, toy.RandomSearch, "plan"),
        ("sampler", t2ialign.SamplerConfig, toy.ToyStep, "evaluations"),
        ("backend", t2ialign.BackendConfig, toy.ToyBackend, "lora_targets"),
    ],
)
def test_the_names_of_a_roles_own_methods_are_no_options(role, base, part, name):
    config = type("Made", (base,), {name: 1, "__annotations__": {name: int}, "__module__": "mine"})
    (status,) = plugins.load([entry_point("mine", registering(role, "mine", part, config=config))]).plugins
    assert f"the option name '{name}' is taken" in status.error


@pytest.mark.parametrize(
    ("provides", "says"), [(3, "provides must be a set of words, not 3"), ((word for word in ["fast"]), "")]
)
def test_words_are_read_once_and_checked(provides, says):
    found = plugins.load([entry_point("mine", registering("reward", "mine", toy.Darkness, provides=provides))])
    assert says in found.plugins[0].error
    assert says or found.parts["reward"]["mine"].provides == {"fast"}


@pytest.mark.parametrize(
    ("method", "value", "says"),
    [("requires", {"backends": {"lora"}}, "requires names 'backends'"), ("provides", "word", "must be a set of words")],
)
def test_words_that_options_give_are_checked_in_validate(tmp_path, method, value, says):
    config = type("Config", (t2ialign.Config,), {method: lambda self: value, "__module__": "mine"})
    plugin = registering("reward", "mine", toy.Redness, config=config)
    with installed(plugin), pytest.raises(T2IAlignError, match=says):
        specs.load(write_spec(tmp_path, reward=[{"kind": "mine"}]))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write an importable module; gives its lazy plugin."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, role="reward", name="heavy_part"):
        (tmp_path / f"{name}.py").write_text(text)
        return registering(role, "mine", f"{name}:Heavy", config=t2ialign.Config, summary="lazy")

    yield write
    for name in [name for name in sys.modules if name.startswith("heavy_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "says"),
    [("# class Heavy is elsewhere\n", "the module has no 'Heavy'"), ("def broken(\n", "is no Python")],
)
def test_a_lazy_class_is_looked_for_in_code_not_in_comments(tmp_path, module, text, says):
    with installed(module(text)), pytest.raises(T2IAlignError, match=says):
        specs.load(write_spec(tmp_path, reward=[{"kind": "mine"}]))


def test_a_lazy_target_below_a_package_that_fails_is_listed(tmp_path, module):
    plugin = registering("reward", "mine", "heavy_package.part:Heavy", config=t2ialign.Config, summary="lazy")
    (tmp_path / "heavy_package").mkdir()
    (tmp_path / "heavy_package" / "__init__.py").write_text("raise RuntimeError('no driver')")
    with installed(plugin), pytest.raises(T2IAlignError, match="no driver"):
        specs.load(write_spec(tmp_path, reward=[{"kind": "mine"}]))


def test_a_lazy_class_of_another_role_is_told_before_the_model_loads(tmp_path, module):
    loaded = []

    class Model(toy.ToyBackend):
        def __init__(self, *arguments):
            loaded.append(self)
            super().__init__(*arguments)

    @t2ialign.hookimpl
    def t2ialign_backends(register):
        register("model", Model, provides={"diffusion", "denoiser", "lora", "differentiable", "one-step"})

    plugin = module("from t2ialign.testing.toy import ToyStep as Heavy\n")
    plugin.t2ialign_backends = t2ialign_backends
    table = {"kind": "model", "checkpoint": "some/model", "dtype": "float32"}
    with installed(plugin):
        spec = specs.load(write_spec(tmp_path, reward=[{"kind": "mine"}], backend=table))
        with pytest.raises(PartError, match="'ToyStep' is a sampler, registered as reward"):
            assemble(spec)
    assert not loaded


def test_a_lazy_module_that_exits_does_not_end_the_run_in_silence(tmp_path, module):
    said = failing(tmp_path, module("import sys\nclass Heavy: ...\nsys.exit()\n"), reward=[{"kind": "mine"}])
    assert "reward 'mine' (mine 1.0) failed" in said
    assert "it exited (SystemExit: None)" in said


def test_a_score_that_exits_does_not_end_the_run_in_silence(tmp_path):
    def score(self, images, prompts):
        sys.exit()

    assert "reward 'bad' (mine 1.0) failed before step 1" in failing(
        tmp_path, reward_with(score), reward=[{"kind": "bad"}]
    )


def test_a_failure_between_steps_names_part_and_step_too(tmp_path):
    calls = []

    def generate(self, conditioning, seeds):
        calls.append(len(seeds))
        if len(calls) == 2:  # the first grid is behind us
            raise ValueError("no such word")
        return toy.RandomSearch.generate(self, conditioning, seeds)

    plugin = registering("optimizer", "mine", type("Mine", (toy.RandomSearch,), {"generate": generate}))
    said = failing(tmp_path, plugin, optimizer={"kind": "mine"}, evaluation={"every": 1})
    assert said.startswith("optimizer 'mine' (mine 1.0) failed after step 1: ValueError: no such word")
    (run,) = (tmp_path / "runs").iterdir()
    assert "no such word" in (run / "traceback.txt").read_text()


def test_a_failure_while_loading_names_the_part(tmp_path):
    def encode(self, prompts):
        raise ValueError("no tokenizer")

    backend = type("Model", (toy.ToyBackend,), {"encode": encode})
    plugin = registering("backend", "model", backend, provides={"denoiser", "lora", "one-step"})
    table = {"kind": "model", "checkpoint": "some/model", "dtype": "float32"}
    said = failing(tmp_path, plugin, backend=table)
    assert said.startswith("backend 'model' (mine 1.0) failed while loading: ValueError: no tokenizer")


def test_a_failure_in_the_last_evaluation_names_the_part_without_a_traceback_on_the_screen(tmp_path, caplog):
    def score(self, images, prompts):
        if (tmp_path / "runs" / "spec" / "export").exists():
            raise ValueError("no such word")
        return images.mean((1, 2, 3))

    said = failing(tmp_path, reward_with(score), reward=[{"kind": "bad"}])
    assert "evaluation: reward 'bad' (mine 1.0) failed: ValueError: no such word" in said
    (run,) = (tmp_path / "runs").iterdir()
    assert "no such word" in (run / "traceback.txt").read_text()
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (lambda self, denoiser, noise, seeds=None: noise[:1], "returned (1, 3, 4, 4), must be latents of shape"),
        (lambda self, denoiser, noise, seeds=None: noise * torch.nan, "returned latents that are not finite"),
        (lambda self, denoiser, noise, seeds=None: noise.int(), "returned torch.int32, must be floating-point latents"),
    ],
)
@pytest.mark.parametrize("rollout", [False, True])
def test_wrong_latents_are_told_by_the_samplers_name(tmp_path, sample, says, rollout):
    plugin = registering("sampler", "mine", type("Mine", (toy.ToyStep,), {"sample": sample}), provides={"one-step"})
    with installed(plugin):
        problem = assemble(specs.load(write_spec(tmp_path, sampler={"kind": "mine"})))
        draw = problem.rollout if rollout else problem.generate
        with pytest.raises(PartError) as caught:
            draw(problem.conditioning, [1, 2, 3, 4, 5])
    assert str(caught.value).startswith(f"sampler 'mine' (mine 1.0) {says}")


def test_wrong_images_of_a_rollout_are_told_by_the_backends_name(tmp_path):
    backend = type("Model", (toy.ToyBackend,), {"decode": lambda self, latents: latents.mean((1, 2, 3))})
    plugin = registering("backend", "model", backend, provides={"denoiser", "lora", "one-step"})
    table = {"kind": "model", "checkpoint": "some/model", "dtype": "float32"}
    with installed(plugin):
        problem = assemble(specs.load(write_spec(tmp_path, backend=table)))
        with pytest.raises(PartError, match=r"backend 'model' \(mine 1.0\) returned .* images of shape"):
            problem.rollout(problem.conditioning, [1, 2, 3, 4, 5])


def test_lists_fit_tuples_inside_lists_and_tables():
    class Config(t2ialign.Config):
        boxes: list[tuple[int, int]]
        named: dict[str, tuple[float, ...]]
        nested: tuple[tuple[int, int], ...] | None = None

    made = Config.model_validate({"boxes": [[1, 2]], "named": {"a": [0.5]}, "nested": [[1, 2], [3, 4]]})
    assert (made.boxes, made.named, made.nested) == ([(1, 2)], {"a": (0.5,)}, ((1, 2), (3, 4)))


def test_a_backend_without_files_needs_no_checkpoint(tmp_path):
    class Model(toy.ToyBackend):
        class Config(toy.ToyBackend.Config):
            checkpoint: str = "none"

    plugin = registering("backend", "model", Model, provides={"denoiser", "lora", "differentiable", "one-step"})
    assert run_spec(tmp_path, plugin, backend={"kind": "model", "dtype": "float32"}).summary()


def test_the_evaluation_of_a_run_that_changed_nothing_follows(tmp_path, caplog):
    plugin = registering(
        "optimizer",
        "mine",
        type("Mine", (toy.RandomSearch,), {"step": lambda self, index: t2ialign.StepResult({})}),
    )
    failing(tmp_path, plugin, optimizer={"kind": "mine"})
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "evaluation" / "summary.json").exists()
    assert any("the last 3 steps changed nothing" in message for message in caplog.messages)


def command(*words):
    return CliRunner().invoke(cli.app, words)


def test_plugins_marks_clashes_names_slow_imports_and_exits_with_1(monkeypatch):
    one, two = (entry_point(name, registering("reward", "mine", toy.Redness), f"{name}-dist") for name in ("a", "b"))
    slow = entry_point("slow", toy)
    found = plugins.load([one, two, slow])
    found.plugins[-1].seconds = 3.2
    monkeypatch.setattr(plugins, "registry", lambda: found)
    shown = command("plugins")
    assert shown.exit_code == 1
    assert "clash: reward 'mine' is registered by a-dist and b-dist" in shown.stdout
    assert "two packages" in shown.stdout
    assert "slow: slow takes 3.2 s to import" in shown.stdout
    assert command("plugins", "--json").exit_code == 1


def test_the_traceback_is_shown_when_asked_for(tmp_path, monkeypatch, capsys):
    def score(self, images, prompts):
        raise ValueError("no such word")

    path = write_spec(tmp_path, reward=[{"kind": "bad"}])
    for words, shown in (((), False), (("--traceback",), True)):
        monkeypatch.setattr(sys, "argv", ["t2ialign", "run", str(path), *words])
        with installed(reward_with(score)), pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr().err
        assert caught.value.code == 1
        assert "error: reward 'bad' (mine 1.0) failed before step 1: ValueError: no such word" in said
        assert ("Traceback (most recent call last)" in said) is shown
