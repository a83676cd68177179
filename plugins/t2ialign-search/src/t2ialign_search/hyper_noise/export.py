"""What a run of ``hyper-noise`` delivers: one file, how to use it, and the proof that it holds the run's network."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from t2ialign.errors import ExportError, Unchanged
from t2ialign.lora.file import write_lora
from t2ialign.problem.export import without_folders
from t2ialign.problem.problem import Problem
from t2ialign_search.hyper_noise.loader import FILE, LAST, read_network

#: The line of a backend's snippet that loads saved noise.
LOADING = re.compile(r'^latents = load_file\("noise"\)\["latents"\](?P<cast>.*)$', re.MULTILINE)


def write_network(problem: Problem, last: str, folder: Path) -> None:
    """Write the noise network and its README.md into ``folder``. Nothing is drawn, nothing is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lora(problem.adapter, problem.backend.info.adapter_prefix, folder / FILE, header={LAST: last})
    (folder / "README.md").write_text(card(problem), encoding="utf-8")


def check_network(problem: Problem, last: str, folder: Path) -> str:
    """Read the file back and compare every tensor.

    Returns:
        One line for README.md.

    Raises:
        Unchanged: the network is still zero.
        ExportError: the file does not hold it.
    """
    wanted = problem.adapter.folded()
    if not any(bool(tensor.any()) for name, tensor in wanted.items() if name.endswith("lora_B.weight")):
        raise Unchanged("the noise network is still zero: no step changed it")
    found, name_of_last = read_network(folder / FILE)
    if name_of_last != last or found.keys() != wanted.keys():
        raise ExportError(f"{FILE} names other layers than the run's noise network has")
    if wrong := [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]:
        raise ExportError(f"{FILE} is not the run's: '{wrong[0]}' differs")
    return f"all {len(wanted)} tensors of the noise network load, and are the run's"


def card(problem: Problem) -> str:
    """README.md of an export."""
    spec, info = problem.spec, problem.backend.info
    rewards = ", ".join(f"{r.name} (weight {r.mix.weight:g})" for r in spec.rewards if r.mix.weight)
    held_out = ", ".join(r.name for r in spec.rewards if not r.mix.weight) or "none"
    text = f"""# {spec.name}

A noise network for `{info.base_model}`, trained by t2ialign's `hyper-noise` in {spec.run.steps} steps: it maps the
initial noise of an image to better noise, in one more evaluation of the network. The model itself stays as it is.

| | |
|---|---|
| `{FILE}` | low-rank factors, scale folded into B; in the last layer they stand alone, without its weight |
| optimised rewards | {rewards} |
| held-out rewards | {held_out} |

**Do not load it as a LoRA**: it would change the model's images, and not its noise.

```python
{snippet(problem).strip()}
```
"""
    return without_folders(problem, text)


def snippet(problem: Problem) -> str:
    """Python code that draws with the noise network, in diffusers where the backend has a pipeline."""
    info, importing = problem.backend.info, "from t2ialign_search.hyper_noise.loader import HyperNoise\n"
    code = problem.backend.noise_snippet("a prompt", "noise", problem.sampler)
    found = LOADING.search(code)
    if not found or "image = pipe(\n" not in code:
        return (
            f'{importing}\nrefine = HyperNoise(network, ".")  # the folder of this file\n'
            "better = noise + refine.residual(...)  # called as the network is, at its first time step\n"
        )
    shape = ", ".join(map(str, (1, *info.latent_shape)))
    latents = (
        f'refine = HyperNoise(pipe.{info.adapter_prefix}, ".")  # the folder of this file\n'
        f"latents = torch.randn({shape}, generator=torch.Generator().manual_seed(0)){found['cast']}"
    )
    code = LOADING.sub(lambda _: latents, code).replace("from safetensors.torch import load_file\n", "")
    code = code.replace("image = pipe(\n", "image = refine(\n    pipe,\n")
    return code.replace("import torch\n", f"import torch\n{importing}", 1)
