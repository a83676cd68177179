"""LoRAs that leave in every form and come back: by ``load_lora``, as a start, as a part of the base, fused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from worlds import WORLD

from t2ialign import seeding
from t2ialign.cli import app
from t2ialign.errors import ExportError, SpecError, UsageError
from t2ialign.lora import reading
from t2ialign.problem.export import check_export, write_export
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.spec import prompts
from t2ialign.storage.run_directory import RunDir
from t2ialign_diffusers.backend import DiffusersBackend

FILE = "pytorch_lora_weights.safetensors"
SEEDS = [3, 4]


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turbo")
    text = WORLD.replace('"sana-sprint"', '"sd-turbo"').replace("sprint-washed", "sd-turbo").replace("OUT", str(folder))
    text = text.replace("complex_human_instruction = false\n", "").replace('["attn2.to_out.0"]', '["to_q", "conv1"]')
    (folder / "spec.toml").write_text(
        text.replace("rank = 1", "rank = 3").replace("shapes-graded", "jpeg-compressibility")
    )
    return folder / "spec.toml"


def problem_of(spec, *overrides):
    return assemble(specs.load(spec, overrides), report=lambda text: None)


def images(problem):
    return problem.generate(problem.conditioning[:2], SEEDS)


def started(spec, lora, *overrides):
    """The problem of a spec that goes on from a LoRA, which leaves targets and ranks to it."""
    text = "\n".join(line for line in spec.read_text().splitlines() if not line.startswith(("targets", "rank")))
    file = spec.with_name(f"start{len(overrides)}.toml")
    file.write_text(text.replace("[backend.lora]", f'[backend.lora]\nstart = "{lora}"'))
    return problem_of(file, *overrides)


@pytest.fixture(scope="module")
def exported(spec):
    """A trained LoRA in every form, and the images that its run gives."""
    problem = problem_of(spec, "export.formats=['kohya', 'peft', 'fused']", "backend.lora.alpha=5.0")
    with torch.no_grad():
        for i, parameter in enumerate(problem.adapter.parameters().values()):
            parameter.copy_(0.2 * seeding.normal([i], parameter.shape)[0])
    folder = spec.with_name("export")
    write_export(problem, folder)
    line = check_export(problem, folder)
    assert "the kohya form holds the same changes; the peft form" in line
    with problem.base():
        base = images(problem)
    tuned = images(problem)
    assert (tuned - base).abs().mean() > 1e-2
    return folder, tuned, base


FORMS = [FILE, "kohya.safetensors", "peft"]


@pytest.mark.parametrize("form", ["", *FORMS])
def test_every_form_gives_the_runs_images_when_it_is_loaded(spec, exported, form):
    folder, tuned, _ = exported
    backend = specs.load(spec).backend.build("cpu")
    backend.load_lora(folder / form)
    sampler = specs.load(spec).sampler.build("cpu")
    texts = prompts.read(specs.load(spec).prompt_file())[:2]
    assert (backend.generate(backend.encode(texts), SEEDS, sampler) - tuned).abs().max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_goes_on_from_a_form_starts_with_its_images(spec, exported, form):
    folder, tuned, base = exported
    problem = started(spec, folder / form)
    assert (images(problem) - tuned).abs().max() < 1e-4
    assert set(problem.adapter.ranks.values()) == {3}
    with problem.base():
        assert (images(problem) - base).abs().max() < 1e-5


@pytest.mark.parametrize("overrides", [(), ("optimizer.parameters=weights", "backend.lora.rank=1")])
def test_an_evolution_strategy_goes_on_from_a_lora(tmp_path, overrides):
    """Of linear layers only, whose full weights can evolve too; what the run delivers lies near the start."""
    (tmp_path / "spec.toml").write_text(
        WORLD.replace("OUT", str(tmp_path)).replace("shapes-graded", "jpeg-compressibility")
    )
    problem = problem_of(tmp_path / "spec.toml")
    with torch.no_grad():
        for i, parameter in enumerate(problem.adapter.parameters().values()):
            parameter.copy_(0.2 * seeding.normal([i], parameter.shape)[0])
    write_export(problem, tmp_path / "export")
    again = started(tmp_path / "spec.toml", tmp_path / "export", *overrides)
    optimizer = load_optimizer(again)
    first = optimizer.generate(again.conditioning[:2], SEEDS)
    assert (first - images(problem)).abs().max() < 1e-4
    optimizer.step(0)
    after = optimizer.generate(again.conditioning[:2], SEEDS)
    assert 0 < (after - first).abs().mean() < 0.1


def test_a_run_continues_from_its_own_export_and_resumes(toy_spec):
    first = runner.start(specs.load(toy_spec()), Display(quiet=True))
    backend = {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32"}
    path = toy_spec(backend={**backend, "lora": {"start": str(first.path / "export")}})
    second = runner.start(specs.load(path), Display(quiet=True))
    _, problem, optimizer = runner.restore(second.path, 4, Display(quiet=True))
    assert set(problem.adapter.ranks.values()) == {2}
    steps = [run.metrics()[-1]["reward/toy-redness"] for run in (first, second)]
    assert steps[1] > steps[0]
    assert optimizer.generate(problem.conditioning, list(range(5))).shape == (5, 3, 4, 4)


def test_a_run_keeps_the_lora_that_it_goes_on_from(toy_spec, tmp_path):
    """The original may go or change, and the run directory may move: resume, eval and export need neither."""
    first = runner.start(specs.load(toy_spec()), Display(quiet=True))
    backend = {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32"}
    path = toy_spec(backend={**backend, "lora": {"start": str(first.path / "export")}})
    whole = runner.start(specs.load(path, ["run.name=whole"]), Display(quiet=True))
    short = runner.start(specs.load(path, ["run.name=short", "run.steps=2"]), Display(quiet=True))
    assert json.loads((short.path / "environment.json").read_text())["lora_start"]["from"].endswith(FILE)
    tensors = load_file(first.path / "export" / FILE)
    save_file({name: -tensor for name, tensor in tensors.items()}, first.path / "export" / FILE)
    moved = short.path.rename(tmp_path / "moved")
    runner.resume(moved, Display(quiet=True), ["run.steps=4"])
    runner.resume(moved.rename(tmp_path / "again"), Display(quiet=True))
    shutil.rmtree(first.path)
    again = RunDir(tmp_path / "again")
    assert again.metrics() == whole.metrics()
    wanted = load_file(whole.path / "export" / FILE)
    assert all(bool(torch.equal(a, wanted[name])) for name, a in load_file(again.path / "export" / FILE).items())
    done = CliRunner().invoke(app, ["export", str(again.path), "--out", str(tmp_path / "out"), "--step", "4"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / FILE).read_bytes() == (again.path / "export" / FILE).read_bytes()
    repeated = runner.start(specs.load(again.path / "spec.toml", ["run.name=repeated"]), Display(quiet=True))
    assert repeated.metrics() == whole.metrics()


def test_a_start_that_may_be_several_files_is_refused_before_anything_is_made(toy_spec, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "loras").mkdir(exist_ok=True)
        save_file({"a": torch.zeros(1)}, tmp_path / "loras" / f"{name}.safetensors")
    backend = {"kind": "toy-model", "checkpoint": "some/model", "lora": {"start": str(tmp_path / "loras")}}
    spec = specs.load(toy_spec(backend=backend))
    with pytest.raises(UsageError, match="which LoRA"):
        runner.start(spec, Display(quiet=True))
    assert not list(Path(spec.run.out).glob("*"))


def test_what_a_start_decides_cannot_be_given_too(toy_spec):
    lora = {"start": "some/lora", "targets": ["0"], "init": "activations"}
    backend = {"kind": "toy-model", "checkpoint": "some/model", "lora": lora}
    with pytest.raises(SpecError, match="start decides targets and init: leave one of them out"):
        specs.load(toy_spec(backend=backend))


def test_a_base_lora_is_a_part_of_the_frozen_model(spec, exported):
    _, tuned, base = exported
    file = spec.with_name("base.toml")

    def merged(weight):
        lora = f'[[backend.base_lora]]\npath = "export/kohya.safetensors"\nweight = {weight}\n'
        file.write_text(spec.read_text().replace("[sampler]", f"{lora}[sampler]"))
        problem = problem_of(file)
        with problem.base():
            return images(problem)

    assert (merged(1.0) - tuned).abs().max() < 1e-4
    assert (merged(0.0) - base).abs().max() < 1e-6
    assert (merged(0.5) - base).abs().mean() < (tuned - base).abs().mean()


def test_the_fused_checkpoint_is_the_tuned_model(spec, exported):
    folder, tuned, _ = exported
    problem = problem_of(spec, f"backend.checkpoint={folder / 'fused'}")
    assert (images(problem) - tuned).abs().max() < 1e-4
    assert not (folder / "fused" / "README.md").exists()


def test_peft_loads_its_form(spec, exported):
    from diffusers import UNet2DConditionModel
    from peft import PeftModel

    folder, tuned, _ = exported
    parsed = specs.load(spec)
    backend = parsed.backend.build("cpu")
    unet = UNet2DConditionModel.from_pretrained(backend.folder / "unet")
    backend.pipeline.unet = PeftModel.from_pretrained(unet, folder / "peft").eval()
    texts = prompts.read(parsed.prompt_file())[:2]
    drawn = backend.generate(backend.encode(texts), SEEDS, parsed.sampler.build("cpu"))
    assert (drawn - tuned).abs().max() < 1e-4


@pytest.mark.parametrize("name", [FILE, "kohya.safetensors"])
def test_diffusers_loads_the_files_by_itself(exported, name):
    from diffusers import StableDiffusionPipeline

    folder, _, _ = exported
    pipe = StableDiffusionPipeline.from_pretrained(folder / "fused")
    pipe.load_lora_weights(folder, weight_name=name)
    loaded = {n: p for n, p in pipe.unet.named_parameters() if ".lora_" in n}
    wanted = load_file(folder / FILE)
    assert len(loaded) == len(wanted)
    for key, tensor in wanted.items():
        path, _, side = key.removeprefix("unet.").rpartition(".lora_")
        assert torch.equal(loaded[f"{path}.lora_{side[0]}.default_0.weight"], tensor)
        layer = pipe.unet.get_submodule(path)
        assert layer.scaling["default_0"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_reported_and_not_judged(spec, tmp_path, dtype):
    problem = problem_of(spec, f"backend.dtype={dtype}", "backend.lora.alpha=5.0")
    with torch.no_grad():
        for i, parameter in enumerate(problem.adapter.parameters().values()):
            parameter.copy_(0.2 * seeding.normal([i], parameter.shape)[0])
    write_export(problem, tmp_path / "export")
    line = check_export(problem, tmp_path / "export")
    assert "images equal the run's within 0.0e+00" in line
    assert f"loaders that round the factors to {dtype} move a pixel by" in line
    tensors = load_file(tmp_path / "export" / FILE)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file(tensors | {name: -tensors[name]}, tmp_path / "export" / FILE)
    with pytest.raises(ExportError, match=name.removeprefix("unet.")):
        check_export(problem, tmp_path / "export")


def test_a_wrong_kohya_form_is_caught(spec, tmp_path):
    problem = problem_of(spec)
    load_optimizer(problem).step(0)
    write_export(problem, tmp_path / "export")
    file = tmp_path / "export" / "kohya.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".alpha"))
    save_file(tensors | {name: tensors[name] * 2}, file)
    with pytest.raises(ExportError, match=r"kohya\.safetensors: the change of 'down_blocks"):
        check_export(problem, tmp_path / "export")


def test_misfits_are_listed_by_name_and_nothing_else_is(spec, exported, tmp_path):
    folder, _, _ = exported
    tensors = load_file(folder / "kohya.safetensors")
    for side, shape in {"lora_up": (8, 3), "lora_down": (3, 8)}.items():
        tensors[f"lora_unet_no_such_layer.{side}.weight"] = torch.zeros(shape)
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(
        UsageError, match=r"2 of \d+ tensors do not fit .*: lora_unet_no_such_layer\.\w+\.weight, lora_"
    ):
        specs.load(spec).backend.build("cpu").load_lora(tmp_path)


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
PAIR = {f"{LAYER}.lora_down.weight": torch.ones(2, 8), f"{LAYER}.lora_up.weight": torch.ones(8, 2)}
OTHERS = {
    "dora": (PAIR | {f"{LAYER}.dora_scale": torch.ones(8, 1)}, "is DoRA; only LoRA factors can be read"),
    "loha": ({f"{LAYER}.hada_w1_a": torch.ones(8, 2)}, "is LoHa; only"),
    "lokr": ({f"{LAYER}.lokr_w1": torch.ones(2, 2), f"{LAYER}.alpha": torch.ones(())}, "is LoKr; only"),
    "tucker": (PAIR | {f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "in Tucker form; only"),
    "whole": ({f"{LAYER}.diff": torch.ones(8, 8)}, "is a difference of whole weights; only"),
    "int8": ({name: tensor.to(torch.int8) for name, tensor in PAIR.items()}, r"are torch\.int8, .*; quantised\?"),
    "nan": (PAIR | {f"{LAYER}.lora_up.weight": torch.full((8, 2), torch.nan)}, "are not all finite numbers"),
    "alpha": (PAIR | {f"{LAYER}.alpha": torch.tensor(torch.inf)}, "are not all finite numbers"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_lora_is_refused_by_its_kind(name, tmp_path):
    tensors, message = OTHERS[name]
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(UsageError, match=message):
        reading.read(tmp_path / "style.safetensors")


def test_an_alpha_of_zero_is_told(tmp_path, caplog):
    save_file(PAIR | {f"{LAYER}.alpha": torch.zeros(())}, tmp_path / "style.safetensors")
    assert not reading.read(tmp_path / "style.safetensors")[f"{LAYER}.lora_up.weight"].any()
    assert "1 layers have alpha = 0 and do nothing" in caplog.text


def test_a_folder_with_several_files_asks_which(spec, tmp_path):
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match=r"which LoRA\?.*a\.safetensors, b\.safetensors"):
        specs.load(spec).backend.build("cpu").load_lora(tmp_path)


def test_a_whole_run_loads_one_network(spec, tmp_path, monkeypatch):
    """Its end included, and text encoders do not come back for the check."""
    loaded, load = [], DiffusersBackend._load

    def counting(self, *arguments, **options):
        pipe = load(self, *arguments, **options)
        loaded.append({name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)})
        return pipe

    monkeypatch.setattr(DiffusersBackend, "_load", counting)
    runner.start(
        specs.load(spec, ["evaluation.limit=2", f"run.out={tmp_path}", "samples.count=2"]), Display(quiet=True)
    )
    assert sum("unet" in parts for parts in loaded) == 1


def test_formats_are_checked_against_the_model(spec, toy_spec):
    with pytest.raises(SpecError, match="'kohya' is no form for a LoRA of 'toy-model'; its forms: diffusers, peft"):
        specs.load(toy_spec(export={"formats": ["kohya"]}))


def test_the_command_writes_the_wanted_forms(toy_spec, tmp_path):
    run = runner.start(specs.load(toy_spec()), Display(quiet=True))
    arguments = ["export", str(run.path), "--format", "peft", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path(tmp_path / "out").iterdir()) == ["README.md", "peft", FILE]
