"""``new-plugin`` and ``check``: for those who write plugins. Only ``check`` imports torch."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2ialign import plugins
from t2ialign.config import CHECKPOINT, Config
from t2ialign.declaration import ROLES, Declaration
from t2ialign.errors import T2IAlignError, UsageError, nearest
from t2ialign.spec import checkpoints, parse
from t2ialign.storage import files

if TYPE_CHECKING:
    from t2ialign.testing.contract import Contract

TEMPLATES = Path(__file__).parent / "templates"


class Role(StrEnum):
    """What a plugin adds."""

    reward = "reward"
    backend = "backend"
    sampler = "sampler"
    optimizer = "optimizer"


def new_plugin(
    role: Annotated[Role, typer.Argument(help="What the plugin adds.")],
    name: Annotated[str, typer.Argument(help="Its kind in a spec: small letters, digits and hyphens.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The package is made in here.")] = Path(),
) -> None:
    """Write a plugin package whose tests pass at once, to start from."""
    module = f"t2ialign_{name.replace('-', '_')}"
    _check_name(role, name, module)
    folder = out / f"t2ialign-{name}"
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another name, or another --out")
    if not out.is_dir():
        raise UsageError(f"--out {out}: no such folder")
    words = {"ROLE": role.value, "KIND": name, "MODULE": module, "CLASS": name.title().replace("-", "")}
    with files.new_folder(folder) as new:
        for path, text in _templates(role):
            file = new / path.replace("MODULE", module)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        if role == Role.backend:
            _write_weights(new / "src" / module / "weights")
    typer.echo(f"wrote {folder}; next:")
    for command in (f"cd {folder}", "pip install -e '.[test]'", "pytest", f"t2ialign check {role}/{name}"):
        typer.echo(f"  {command}")


def _check_name(role: str, name: str, module: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"'{name}' is no kind: small letters, digits and hyphens, a letter first, like 'my-{role}'")
    if name in (taken := plugins.registry().parts[role]):
        raise UsageError(f"{role} '{name}' exists already, in {taken[name].distribution}; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise UsageError(f"a package t2ialign-{name} is installed already; choose another name")


def _templates(role: str) -> Iterator[tuple[str, str]]:
    """(path in the new package, text) of every file, names in capitals still to be filled in."""
    for folder in (TEMPLATES / "common", TEMPLATES / role):
        for file in sorted(folder.rglob("*.tmpl")):
            yield file.relative_to(folder).as_posix().removesuffix(".tmpl"), file.read_text(encoding="utf-8")


def _write_weights(folder: Path) -> None:
    """Random weights in the sizes of the backend's template."""
    import numpy as np
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0).standard_normal
    shapes = {"0.weight": (32, 201), "0.bias": (32,), "2.weight": (192, 32), "2.bias": (192,)}
    folder.mkdir()
    save_file(
        {name: (draw(shape) / shape[-1] ** 0.5).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )


def check(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="An installed part; ROLE/KIND where two have that kind.")],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the part; the value is TOML. Repeatable."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that the part understands, in place of ours; three or more for a backend."),
    ] = None,
) -> None:
    """Run the contract tests on an installed part. Exit code 1 when one fails. Nothing is downloaded."""
    declared = _find(kind)
    table: dict[str, Any] = {}
    for text in options or []:
        parse.apply_override(table, text)
    config = parse.parse_part(declared.role, {"kind": declared.kind, **table}, "--set").config
    _need_checkpoints(declared, config)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from t2ialign.cli.running import quiet_libraries

    quiet_libraries()
    typer.echo(f"{declared.role} '{declared.kind}' ({declared.distribution} {declared.version})")
    failed = total = 0
    with _contract(declared, config, table, prompt) as contract:
        for outcome in contract.outcomes():
            total += 1
            failed += bool(outcome.error)
            typer.echo(f"  {'FAILED' if outcome.error else 'passed'}  {outcome.title}")
            if outcome.error:
                typer.echo(f"          {outcome.error}")
    typer.echo(f"{total - failed} of {total} checks passed")
    if failed:
        raise typer.Exit(1)


def _find(text: str) -> Declaration:
    role, _, kind = text.rpartition("/")
    if role and role not in ROLES:
        raise UsageError(f"{text}: no role '{role}'; roles: {', '.join(ROLES)}")
    parts = plugins.registry()
    found = [one for one in ([role] if role else ROLES) if kind in parts.parts[one]]
    if len(found) > 1:
        raise UsageError(f"{kind}: which one? {' or '.join(f'{one}/{kind}' for one in found)}")
    if not found:
        known = {word for one in ([role] if role else ROLES) for word in parts.parts[one]}
        hint = f"; did you mean '{match}'?" if (match := nearest(kind, known)) else "; see: t2ialign plugins"
        raise UsageError(f"{text}: no such {role or 'part'} is installed{hint}")
    return parts.find(found[0], kind)


def _need_checkpoints(declared: Declaration, config: Config) -> None:
    """
    Raises:
        UsageError: a checkpoint would have to be downloaded.
    """
    for key, field in type(config).model_fields.items():
        reference = getattr(config, key)
        if CHECKPOINT not in field.metadata or reference is None or checkpoints.local_path(reference) is not None:
            continue
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(reference, revision=getattr(config, "revision", None), local_files_only=True)
        except OSError as error:
            raise UsageError(
                f"{declared.role} '{declared.kind}' needs {key} = '{reference}', which is not on this machine; fetch it"
                f" once (hf download {reference}), or name a folder: --set {key}=FOLDER"
            ) from error


@contextmanager
def _contract(
    declared: Declaration, config: Config, table: dict[str, Any], prompts: list[str] | None
) -> Iterator[Contract]:
    """The contract of a part, loaded.

    Raises:
        UsageError: the part cannot be loaded, or the toy world is not what an optimizer requires.
    """
    from t2ialign.testing import toy
    from t2ialign.testing.backends import PROMPTS, BackendContract
    from t2ialign.testing.optimizers import OptimizerContract
    from t2ialign.testing.rewards import RewardContract
    from t2ialign.testing.samplers import SamplerContract
    from t2ialign.testing.world import installed

    words = (declared.provides | config.provides()) - config.withholds().keys()
    gradients = "differentiable" in words
    try:
        target = declared.load()
        if declared.role == "optimizer":
            with tempfile.TemporaryDirectory() as folder, installed(everything=True):
                yield OptimizerContract(target.__name__, Path(folder), {"kind": declared.kind, **table}, {})
            return
        part = target(config)
    except T2IAlignError:
        raise
    except Exception as error:
        where = f"{declared.role} '{declared.kind}' of {declared.distribution} {declared.version}"
        raise UsageError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if declared.role == "reward":
        yield RewardContract(part, prompts=prompts, differentiable=gradients)
    elif declared.role == "sampler":
        yield SamplerContract(part, differentiable=gradients)
    else:
        steps = 2 if "multi-step" in words else 1
        sampler = toy.ToySteps(toy.ToySteps.Config(steps=steps)) if "denoiser" in words else None
        yield BackendContract(part, prompts or PROMPTS, sampler, gradients)
