"""``doctor``: what of this machine a run would meet, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from t2ialign import __version__, places
from t2ialign import plugins as registry_module
from t2ialign.cli.machine.runs import human, size

State = Literal["ok", "note", "wrong"]
MARKS = {"ok": "✓", "note": "-", "wrong": "✗"}
#: Distributions that a run uses if they are there.
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "numpy")
OPTIONAL = ("torchao", "bitsandbytes", "gguf", "tensorboard", "wandb", "trackio", "mlflow", "swanlab")
LITTLE_DISK = 10**10
TIMEOUT = 5.0


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and whether a run would fail by it."""

    what: str
    found: str
    state: State = "ok"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
) -> None:
    """Look at versions, devices, memory, disk, hub, caches and plugins; exit code 1 if something is wrong."""
    found = list(findings(offline))
    wrong = [finding for finding in found if finding.state == "wrong"]
    if as_json:
        typer.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        for finding in found:
            typer.echo(f"{MARKS[finding.state]} {finding.what:22}{finding.found}")
        typer.echo(f"{len(wrong)} things are wrong" if wrong else "nothing is wrong")
    raise typer.Exit(1 if wrong else 0)


def findings(offline: bool = False) -> Iterator[Finding]:
    yield Finding("t2ialign", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from _packages()
    yield from _devices()
    yield from _memory()
    yield from _places()
    yield from _hub(offline)
    yield from _plugins()


def _packages() -> Iterator[Finding]:
    versions = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    if versions["torch"] is None:
        yield Finding("torch", "is not installed", "wrong")
    yield Finding("packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if absent := [name for name in OPTIONAL if versions[name] is None]:
        yield Finding("not installed", ", ".join(absent), "note")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    """The one place of this command that needs torch: only it knows whether a device answers."""
    if find_spec("torch") is None:
        return
    try:
        import torch

        devices = [
            f"cuda:{index} {torch.cuda.get_device_name(index)},"
            f" {human(torch.cuda.mem_get_info(index)[0])} of {human(torch.cuda.mem_get_info(index)[1])} free"
            for index in range(torch.cuda.device_count())
        ]
        if torch.backends.mps.is_available():
            devices.append("mps")
        threads = torch.get_num_threads()
    except Exception as error:  # a broken driver raises whatever it likes
        yield Finding("devices", f"{type(error).__name__}: {error}", "wrong")
        return
    for device in devices:
        yield Finding("device", device)
    if not devices and Path("/dev/nvidiactl").exists():
        yield Finding("device", "there is an NVIDIA driver, and this torch does not use it", "wrong")
    yield Finding("cpu", f"{os.cpu_count()} cores, {threads} threads" + ("" if devices else "; no GPU"))


def _memory() -> Iterator[Finding]:
    try:
        import psutil
    except ModuleNotFoundError:
        return
    memory = psutil.virtual_memory()
    yield Finding("memory", f"{human(memory.available)} of {human(memory.total)} free")


def _places() -> Iterator[Finding]:
    """Folders that runs write: the caches, the current one, and the one for temporary files."""
    from t2ialign.storage.embeds import cache_root

    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    folders = {
        "hub cache": hub.expanduser(),
        "prompt cache": cache_root(),
        "current folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        if reason := places.unwritable(folder):
            yield Finding(name, f"{folder}: {reason}", "wrong")
            continue
        there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        taken = f", {human(size(folder))}" if "cache" in name and folder.is_dir() else ""
        little = free < LITTLE_DISK
        words = f"{folder}{taken}, {human(free)} free" + (": little for checkpoints" if little else "")
        yield Finding(name, words, "note" if little else "ok")


def _hub(offline: bool) -> Iterator[Finding]:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "token")
    has_file = file.expanduser().is_file()
    where = "in HF_TOKEN" if token else f"in {file}" if has_file else "none: gated models cannot be fetched"
    yield Finding("hub token", where, "ok" if token or has_file else "note")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", f"{endpoint} was not asked (offline)", "note")
        return
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=TIMEOUT) as answer:
            yield Finding("hub", f"{endpoint} answers ({answer.status})")
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Finding("hub", f"{endpoint} does not answer ({reason}); what is in the cache works", "note")


def _plugins() -> Iterator[Finding]:
    found = registry_module.registry()
    broken = [status for status in found.plugins if status.error]
    for status in broken:
        yield Finding(f"plugin {status.name}", f"{status.distribution} {status.version}: {status.error}", "wrong")
    for (role, kind), names in found.clashes.items():
        yield Finding("plugins", f"{role} '{kind}' is registered by {' and '.join(names)}", "wrong")
    good = [status.name for status in found.plugins if not status.error]
    yield Finding("plugins", f"{len(good)}: {', '.join(sorted(good))}" if good else "none", "ok" if good else "wrong")
