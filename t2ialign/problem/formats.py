"""The forms of an exported LoRA besides the one that diffusers reads, and what their headers say."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from t2ialign.config import LoraFormat
from t2ialign.errors import ExportError
from t2ialign.lora.file import FILE, inner, write_loras, write_peft
from t2ialign.problem.problem import Problem
from t2ialign.storage.tensor_files import write_tensors

#: Name of the file or folder of each form. No name may end in that of the diffusers form, which loaders look for.
FORMS: dict[LoraFormat, str] = {"diffusers": FILE, "kohya": "kohya.safetensors", "peft": "peft", "fused": "fused"}


def write_formats(problem: Problem, folder: Path) -> None:
    """Write every form that the spec asks for. PEFT and kohya have no form for a LoRA of the decoder."""
    backend, prefix = problem.backend, problem.backend.info.adapter_prefix
    header, wanted = file_header(problem), problem.spec.formats()
    write_loras(problem.adapter, prefix, folder, header)
    folded = problem.adapter.folded()
    own = network_part(problem, folded)
    base = "" if Path(backend.info.base_model).is_absolute() else backend.info.base_model
    if "kohya" in wanted:
        write_tensors(folder / FORMS["kohya"], backend.to_kohya(own), header)
    if "peft" in wanted:
        write_peft(own, folder / FORMS["peft"], base, header)
    if "fused" in wanted:
        backend.write_fused(folded, folder / FORMS["fused"])


def clients(problem: Problem) -> str:
    """Rows of the model card: which program reads which of the files."""
    readers = problem.spec.backend_config.lora_formats()
    return "\n".join(f"| `{FORMS[form]}` | {readers[form]} |" for form in problem.spec.formats())


def network_part(problem: Problem, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the trained network, without a component's name."""
    whole = isinstance(problem.adapter.module, torch.nn.ModuleDict)
    return inner(tensors, f"{problem.backend.info.adapter_prefix}." if whole else "")


def check_formats(problem: Problem, folder: Path) -> list[str]:
    """Read the kohya and PEFT forms that are there, and compare B A of every layer with the run's.

    Fused layers may come back with other ranks, so that the factors themselves need not be equal.

    Returns:
        The forms that were compared.

    Raises:
        ExportError: names the file and the layer.
    """
    wanted, checked = network_part(problem, problem.adapter.folded()), []
    for form in ("kohya", "peft"):
        path = folder / FORMS[form]
        if not path.exists():
            continue
        found = network_part(problem, problem.backend.read_lora(path))
        layers = {name.rpartition(".lora_")[0] for name in (*wanted, *found)}
        for layer in sorted(layers):
            if not torch.allclose(product(found, layer), product(wanted, layer), rtol=1e-5, atol=1e-7):
                raise ExportError(f"{path.name}: the change of '{layer}' is not the run's")
        checked.append(form)
    return checked


def product(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    """B A of a layer (out, in), 0 where it has none."""
    if f"{layer}.lora_A.weight" not in tensors:
        return torch.zeros(())
    return tensors[f"{layer}.lora_B.weight"].flatten(1) @ tensors[f"{layer}.lora_A.weight"].flatten(1)


def file_header(problem: Problem) -> dict[str, str]:
    """Metadata by the ModelSpec (github.com/Stability-AI/ModelSpec): no date and no path, so that equal runs agree."""
    spec, info = problem.spec, problem.backend.info
    rewards = ", ".join(f"{r.name} (weight {r.mix.weight:g})" for r in spec.rewards if r.mix.weight)
    height, width = info.image_size
    described = {
        "sai_model_spec": "1.0.1",
        "title": spec.name,
        "implementation": "diffusers",
        "implementation_version": f"t2ialign/{version('t2ialign')}",
        "resolution": f"{width}x{height}",
        "description": f"{spec.optimizer.kind}, {spec.run.steps} steps, optimised for {rewards}",
        **problem.backend.modelspec(),
    }
    return {f"modelspec.{key}": value for key, value in described.items()}
