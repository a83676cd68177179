"""The end of a run: written first, checked second, and nothing keeps the rest from following."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from t2ialign.errors import ExportError, UsageError
from t2ialign.lora.adapter import Adapter, guest
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import finish, runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.tensor_files import write_tensors
from t2ialign.testing import installed

QUIET = Display(quiet=True)
FILE = "pytorch_lora_weights.safetensors"


def written(run: Path) -> list[str]:
    """What must be there however a run ends."""
    wanted = [f"export/{FILE}", "export/README.md", "evaluation/summary.json", "report.html"]
    return [name for name in wanted if not (run / name).is_file()]


def explode(error):
    def raising(*arguments, **options):
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ExportError("another image"), "The check found these files wrong: another image"),
        (torch.OutOfMemoryError("CUDA out of memory"), "The check did not get through: OutOfMemoryError: CUDA"),
        (ZeroDivisionError("a bug"), "The check did not get through: ZeroDivisionError: a bug"),
    ],
)
def test_a_check_that_fails_loses_nothing(toy_spec, monkeypatch, error, says):
    monkeypatch.setattr("t2ialign.problem.export.check_export", explode(error))
    spec = specs.load(toy_spec())
    with pytest.raises(finish.Unfinished, match="check of the export: ") as caught:
        runner.start(spec, QUIET)
    assert caught.value.exit_code == 1
    run = Path(spec.run.out) / "spec"
    assert written(run) == []
    assert says in (run / "export" / finish.UNCHECKED).read_text()
    assert "**Unchecked**" in (run / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("broken", "stage", "missing"),
    [
        ("t2ialign.problem.export.write_export", "export", [f"export/{FILE}", "export/README.md"]),
        ("t2ialign.run.finish.evaluate", "evaluation", ["evaluation/summary.json"]),
        ("t2ialign.run.finish.report.write", "report", ["report.html"]),
    ],
)
def test_every_stage_runs_whatever_happened_to_the_others(toy_spec, monkeypatch, broken, stage, missing):
    monkeypatch.setattr(broken, explode(OSError("disk full")))
    spec = specs.load(toy_spec())
    with pytest.raises(finish.Unfinished, match=f"{stage}: disk full"):
        runner.start(spec, QUIET)
    assert written(Path(spec.run.out) / "spec") == missing


def test_a_run_without_an_update_says_so_and_is_evaluated(toy_spec):
    """No candidate is better than the start."""
    spec = specs.load(toy_spec(optimizer={"kind": "toy-search", "scale": 1e-30}))
    with pytest.raises(finish.Unfinished, match="the LoRA is still zero: no step changed it"):
        runner.start(spec, QUIET)
    assert written(Path(spec.run.out) / "spec") == []


@pytest.mark.parametrize("kind", ["toy-search", "eggroll"])
def test_a_run_whose_scores_are_all_equal_names_the_constant_reward(toy_spec, monkeypatch, kind):
    from t2ialign.testing import toy

    monkeypatch.setattr(toy.Redness, "score", lambda self, images, prompts: 1 + 0 * images.flatten(1).sum(1))
    table = {"kind": kind} if kind == "toy-search" else {"kind": kind, "population": 4}
    with installed(everything=True):
        spec = specs.load(toy_spec(optimizer=table), ["run.steps=2"])
        with pytest.raises(finish.Unfinished, match="constant reward: at each of 2 steps all scores were equal, toy-"):
            runner.start(spec, QUIET)
    run = Path(spec.run.out) / "spec"
    assert written(run) == []
    assert "constant reward" in (run / "export" / finish.UNCHECKED).read_text()


def test_a_good_export_says_that_it_was_checked(toy_spec):
    run = runner.start(specs.load(toy_spec()), QUIET)
    assert (
        "Checked: every tensor loads; images equal the run's within 0.0e+00"
        in (run.path / "export" / "README.md").read_text()
    )
    assert not (run.path / "export" / finish.UNCHECKED).exists()


def corrupt(tensors, how):
    name = "transformer.0.lora_B.weight"
    if how == "negated":
        return tensors | {name: -tensors[name]}
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    if how == "a layer dropped":
        return {key: tensor for key, tensor in rest.items() if not key.startswith("transformer.0.")}
    return rest if how == "dropped" else rest | {"transformer.9.lora_B.weight": tensors[name]}


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("negated", r"'0\.lora_B\.weight' differs"),
        ("dropped", r"lacks 'transformer\.0\.lora_B\.weight'"),
        ("a layer dropped", r"lacks '0\.lora_A\.weight'"),
        ("renamed", r"transformer\.[09]\.lora_[AB]\.weight"),
    ],
)
def test_a_corrupted_file_is_caught_with_the_tensors_name(toy_spec, how, named):
    run = runner.start(specs.load(toy_spec()), QUIET)
    _, _, optimizer = runner.restore(run.path, None, QUIET)
    file = run.path / "export" / FILE
    save_file(corrupt(load_file(file), how), file)
    with pytest.raises((ExportError, UsageError), match=named):
        optimizer.check(file.parent)


def test_the_check_leaves_the_network_as_it_was_and_allocates_no_second_one(toy_spec, monkeypatch):
    problem = assemble(specs.load(toy_spec()), report=lambda text: None)
    optimizer = load_optimizer(problem)
    optimizer.step(0)
    before = problem.generate(problem.conditioning, list(range(5)))
    modules = [(name, id(module)) for name, module in problem.backend.net.named_modules()]
    folder = Path(problem.spec.run.out) / "out"
    finish.write_export(optimizer, folder)
    monkeypatch.setattr("t2ialign.testing.toy.ToyBackend.__init__", explode(AssertionError("a second network")))
    finish.check_export(optimizer, folder)
    assert [(name, id(module)) for name, module in problem.backend.net.named_modules()] == modules
    assert torch.equal(problem.generate(problem.conditioning, list(range(5))), before)
    assert all(parameter.requires_grad for parameter in problem.adapter.parameters().values())
    with problem.base():
        assert not torch.equal(problem.generate(problem.conditioning, list(range(5))), before)


def test_the_check_keeps_to_the_micro_batch_and_retries(toy_spec, monkeypatch):
    problem = assemble(specs.load(toy_spec(), ["run.micro_batch=4"]), report=lambda text: None)
    optimizer = load_optimizer(problem)
    optimizer.step(0)
    folder = Path(problem.spec.run.out) / "out"
    finish.write_export(optimizer, folder)
    sizes, render = [], type(problem).render

    def tight(self, conditioning, seeds, noise=None):
        sizes.append(len(conditioning))
        if len(sizes) > 2 and len(conditioning) > 2:  # memory runs short between two drawings
            raise torch.OutOfMemoryError("out of memory")
        return render(self, conditioning, seeds, noise)

    monkeypatch.setattr(type(problem), "render", tight)
    finish.check_export(optimizer, folder)
    assert problem.micro_batch == 2
    assert sizes[-6:] == [2] * 6  # run, base and file, two micro-batches each


def test_layers_that_only_the_file_has_are_taken_off_again(toy_spec):
    problem = assemble(specs.load(toy_spec()), report=lambda text: None)
    net = problem.backend.net
    with guest(net, lambda name: Adapter(net, problem.adapter.config, ["0", "2"], name=name)) as layers:
        assert list(layers) == ["0", "2"]
    fresh = type(problem.backend)(problem.backend.config)
    with guest(fresh.net, lambda name: Adapter(fresh.net, problem.adapter.config, ["2"], name=name)):
        pass
    assert [type(module).__name__ for module in fresh.net] == ["Linear", "Tanh", "Linear"]


def test_files_get_the_permissions_of_the_umask(toy_spec):
    before = os.umask(0o022)
    try:
        run = runner.start(specs.load(toy_spec()), QUIET)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in run.path.rglob("*.safetensors")}
    assert modes == dict.fromkeys(modes, 0o644)
    assert len(modes) == 2


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {
        "b": torch.arange(6).view(2, 3).float().T,
        "a": torch.tensor(2.5, dtype=torch.bfloat16),
        "c": torch.zeros(0, 3),
        "d": torch.tensor([True, False]),
    }
    metadata = {f"key{number}": "ü" * number for number in range(20)}
    write_tensors(tmp_path / "x", tensors, metadata)
    write_tensors(tmp_path / "y", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    read = load_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with safe_open(tmp_path / "x", "pt") as stream:
        assert stream.metadata() == metadata
