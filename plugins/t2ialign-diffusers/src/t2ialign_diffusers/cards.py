"""The code on a model card: a call of the stock pipeline that draws the run's images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from t2ialign import checkpoints
from t2ialign.lora.file import component_file
from t2ialign.parts.sampler import Sampler

if TYPE_CHECKING:
    from t2ialign import BackendInfo

DECODER_LORA_FILE = component_file("vae")


class CardCalls:
    """What a ``DiffusersBackend`` prints; subclasses change single lines.

    Attributes:
        snippet_lora: the line that loads the LoRA.
        snippet_prompt: what stands in front of the prompt, in a pipeline whose first argument is another one.
    """

    if TYPE_CHECKING:
        config: Any
        info: BackendInfo
        pipeline_names: ClassVar[tuple[str, ...]]
        trained_component: ClassVar[str]

    snippet_lora: ClassVar[str] = 'pipe.load_lora_weights(".")  # the folder of this file'

    snippet_prompt: ClassVar[str] = ""

    def snippet(self, sampler: Sampler | None = None) -> str:
        kind = self.config.quantization and self.config.quantization.kind
        note = f"# The run had its base in {kind} (backend.quantization); without that, images differ a little.\n"
        loading = self.snippet_loading() + (note if kind else "")
        if self.config.lora_decoder:
            loading = f"from t2ialign.lora.file import load_lora_file\n{loading}"
            loading += f'load_lora_file(pipe.vae, "{DECODER_LORA_FILE}", "vae")  # no pipeline loads this one\n'
        return loading + self.snippet_scheduler(sampler) + self._snippet_call('"a prompt"', sampler)

    def snippet_scheduler(self, sampler: Sampler | None) -> str:
        """Lines that give the pipeline the run's sampler, where it is not the checkpoint's own."""
        if sampler is None or sampler.scheduler() is not None:
            return ""
        return f"# diffusers has no scheduler like the run's {type(sampler).__name__}: images differ from the run's.\n"

    def noise_snippet(self, prompt: str, file: str, sampler: Sampler | None = None) -> str:
        loading = f"{self.snippet_pipeline()}\n{self.snippet_base_loras()}"
        noise = self.snippet_noise(f'load_file({json.dumps(file)})["latents"]')
        call = self._snippet_call(f"{json.dumps(prompt, ensure_ascii=False)},\n    latents=latents", sampler)
        scheduler = self.snippet_scheduler(sampler)
        return f"from safetensors.torch import load_file\n{loading}{scheduler}{noise}{call}"

    def snippet_noise(self, source: str) -> str:
        """Lines that bring noise of a run, (1, *latent_shape), into the form that the pipeline takes."""
        cast = "" if self.config.dtype == "float32" else f".to(torch.{self.config.dtype})"
        return f"latents = {source}{cast}\n"

    def snippet_base_loras(self) -> str:
        """Lines that merge ``base_lora`` into the pipeline."""
        lines = []
        for place, lora in enumerate(self.config.base_lora):
            repository, file = checkpoints.hub_file(lora.path) or (lora.path, "")
            weights = f", weight_name={file!r}" if file else ""
            lines += [
                f'pipe.load_lora_weights({repository!r}{weights}, adapter_name="base_{place}")',
                f'pipe.fuse_lora(components=["{self.trained_component}"], lora_scale={lora.weight})',
                "pipe.unload_lora_weights()",
            ]
        return "".join(f"{line}\n" for line in lines)

    def _snippet_call(self, first: str, sampler: Sampler | None) -> str:
        steps = self.config.usual_steps if sampler is None else getattr(sampler.config, "steps", 1)
        arguments = "".join(f"    {name}={value!r},\n" for name, value in self.snippet_arguments(steps).items())
        return f"image = pipe(\n    {self.snippet_prompt}{first},\n{arguments}).images[0]\n"

    def snippet_loading(self) -> str:
        """First lines of the snippet: the pipeline, what the run merged into it, the LoRA of the current folder."""
        return f"{self.snippet_pipeline()}\n{self.snippet_base_loras()}{self.snippet_lora}\n"

    def snippet_pipeline(self) -> str:
        """First lines of the snippet: the pipeline, which needs no t2ialign."""
        reference, name = self.config.checkpoint, self.info.pipeline or self.pipeline_names[0]
        imports, source = "import torch", repr(reference)
        if reference.startswith("pkg:"):
            package, _, inner = reference.removeprefix("pkg:").partition("/")
            imports = "import importlib.resources\n\nimport torch"
            source = f'importlib.resources.files("{package}") / "{inner}"'
        return f"""\
{imports}
from diffusers import {name}

pipe = {name}.from_pretrained({source}{self.snippet_edition}, dtype=torch.{self.config.dtype})"""

    @property
    def snippet_edition(self) -> str:
        """Arguments of ``from_pretrained`` that choose between the checkpoint's editions, each after a comma."""
        chosen = {"revision": self.config.revision, "variant": self.config.variant}
        return "".join(f", {name}={value!r}" for name, value in chosen.items() if value)

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        """Arguments of the snippet's pipeline call besides the prompt."""
        height, width = self.info.image_size
        return {"num_inference_steps": steps, "height": height, "width": width}
