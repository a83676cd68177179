"""What all backends on diffusers pipelines share: loading, text encoding, decoding, LoRA files.

The network and the autoencoder load on first use, and the text encoders only while they encode, so that the usual
order (encode, then generate) never holds both.
"""

from __future__ import annotations

import importlib.metadata
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from t2ialign import checkpoints
from t2ialign.errors import UsageError
from t2ialign.lora.adapter import matching, move_adapters
from t2ialign.lora.file import load_lora_file
from t2ialign.lora.reading import find
from t2ialign.parts.backend import Backend
from t2ialign.ranks.sharding import blocks
from t2ialign.storage.embeds import EmbedsCache, Row, assemble
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_diffusers.cards import DECODER_LORA_FILE, CardCalls
from t2ialign_diffusers.compilation import compile_blocks, compile_forward, compiling
from t2ialign_diffusers.config import DiffusersConfig, unheeded
from t2ialign_diffusers.decoding import Decoding
from t2ialign_diffusers.folder import check_complete, open_checkpoint, open_outline, read_json
from t2ialign_diffusers.lora_names import Originals, to_kohya, to_modules
from t2ialign_diffusers.merging import merge_base, write_fused
from t2ialign_diffusers.offload import TakingTurns
from t2ialign_diffusers.originals import originals
from t2ialign_diffusers.outline import outline, resident, rows_without_values, size, text_networks
from t2ialign_diffusers.quantization import quantize
from t2ialign_diffusers.quiet import quiet_libraries as quiet_libraries
from t2ialign_diffusers.recompute import recompute_blocks
from t2ialign_diffusers.sizes import shapes, sides, vae_factor
from t2ialign_diffusers.text import TextComponents

LORA_FILE = "pytorch_lora_weights.safetensors"


class DiffusersBackend(CardCalls, Decoding, Backend):
    """A pipeline of diffusers taken apart: encode, denoise, decode, each batched and differentiable.

    Subclasses set the class attributes and ``info``, and write ``encode_batch`` and ``denoiser``.

    Attributes:
        pipeline_names: pipeline classes of ``model_index.json`` that the backend understands; the first one loads it.
        text_components: sub-folders that only encoding needs.
        trained_component: the network that LoRA adapts, "transformer" or "unet".
        channels_last: keep the network's weights in the memory layout that convolutions are fastest in.
        weightless: components whose weights ``own_components`` takes from elsewhere.
        load_options: further arguments of the pipeline's ``from_pretrained``.
        row_names: names of the tensors that ``encode_batch`` gives for a prompt.
        ragged: those of them that are ragged -> names of their masks.
        folder: the local checkpoint.
    """

    pipeline_names: ClassVar[tuple[str, ...]]
    text_components: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    trained_component: ClassVar[str] = "transformer"
    channels_last: ClassVar[bool] = False
    weightless: tuple[str, ...] = ()
    load_options: ClassVar[dict[str, Any]] = {}
    row_names: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    ragged: ClassVar[dict[str, str]] = {}
    has_outline: ClassVar[bool] = True

    def __init__(self, config: DiffusersConfig, device: torch.device | str = "cpu") -> None:
        """Find and check the checkpoint; no weight is loaded yet.

        On the device "meta" there never is one: configurations are all that is fetched and read.

        Raises:
            UsageError: the checkpoint is missing, incomplete or of another pipeline.
        """
        super().__init__(config, device)
        self.check_decoder()
        self.turns: TakingTurns | None = None
        self._component_configs: dict[str, dict[str, Any]] = {}
        text, parts = self.text_components, (self.trained_component, "vae", "scheduler")
        if self.is_outline:
            self.folder = open_outline(config.checkpoint, config.revision, self.pipeline_names, parts, text)
        else:
            self.folder = open_checkpoint(
                config.checkpoint,
                config.revision,
                self.pipeline_names,
                (*text, *parts),
                self.weightless,
                config.variant,
            )
        if wrong := unheeded(self.component_config("vae"), config.latent_keys):
            raise UsageError(f"backend.checkpoint = '{config.checkpoint}': {wrong}")

    @property
    def compiled(self) -> bool:
        return self.config.compile not in ("none", "decoder")

    def compiling(self, on: bool = True) -> AbstractContextManager[None]:
        return super().compiling(on) if self.config.compile == "none" else compiling(on)

    @property
    def is_outline(self) -> bool:
        """Whether this is a model without weights, for questions about its size."""
        return self.device.type == "meta"

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline without its text encoders, on the device, frozen; loaded on first use."""
        dtypes = {self.trained_component: self.config.dtype, "vae": self.config.vae_dtype or self.stable_dtype}
        if self.is_outline:
            folders = {self.trained_component: self.network_settings, "vae": self.folder / "vae"}
            with quiet_libraries():
                pipeline = outline(folders, dtypes)
        else:
            pipeline = self._loaded(dtypes)
        parts = {"network": getattr(pipeline, self.trained_component), "decoder": pipeline.vae}
        if self.compiled and not self.is_outline:
            compile_blocks(parts["network"], self.config.compile, self.config.compile_fullgraph)
        for part, module in parts.items():
            if part in self.config.gradient_checkpointing:
                recompute_blocks(module)
        if self.config.vae_slicing:
            pipeline.vae.enable_slicing()
        if self.config.vae_tiling:
            pipeline.vae.enable_tiling()
        if self.config.compile != "none" and not self.is_outline:
            # The decoder, for nobody calls the autoencoder.
            compile_forward(pipeline.vae.decoder, self.config.compile, self.config.compile_fullgraph, parts["network"])
        return pipeline

    def _loaded(self, dtypes: dict[str, str]) -> Any:
        """Network and autoencoder with their weights, on the device, frozen."""
        pipeline = self._load(self.text_components, dtypes, **self.own_components())
        parts = {"network": getattr(pipeline, self.trained_component), "decoder": pipeline.vae}
        if self.trained_component not in self.weightless:
            check_complete(parts["network"], self.folder / self.trained_component, "backend.checkpoint")
        merge_base(parts["network"], self.trained_component, self.config.base_lora)
        if self.channels_last:
            parts["network"].to(memory_format=torch.channels_last)
        if self.config.quantization:
            quantize(parts["network"], self.config.quantization)
        for module in parts.values():
            module.eval().requires_grad_(False)
        self._place(**parts)
        return pipeline

    def _place(self, network: nn.Module, decoder: Any) -> None:
        """Bring both to the device, or let them take turns there."""
        if self.config.offload == "none":
            if self.config.shard == "none":
                network.to(self.device)  # else only this rank's part of it will go there
            decoder.to(self.device)
            return
        units = blocks(network) if self.config.offload == "blocks" else [network]
        self.turns = TakingTurns([network, decoder], [*units, decoder.encoder, decoder.decoder], self.device)

    def own_components(self) -> dict[str, Any]:
        """Components that replace the checkpoint's own."""
        return {}

    @property
    def network_settings(self) -> Path:
        """Folder of the trained network's config.json."""
        return self.folder / self.trained_component

    def text_bytes(self) -> int:
        with quiet_libraries():
            return sum(map(size, text_networks(self.folder, self.text_components, self.stable_dtype)))

    def resident(self) -> dict[str, int]:
        network, decoder = self.trainable, self.pipeline.vae
        draft = {"draft decoder": size(self.draft_decoder.decoder)} if self.drafts else {}
        units = list(blocks(network)) if self.config.offload == "blocks" else [network]
        return resident(network, decoder, self.config.quantization, self.config.offload, units) | draft

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a row that ``encode_batch`` gives, of the longest prompt."""
        raise NotImplementedError(f"{type(self).__name__} does not say how large its embeddings are")

    @property
    def trainable(self) -> nn.Module:
        return getattr(self.pipeline, self.trained_component)

    @property
    def adapted(self) -> nn.Module:
        """The trained network; with ``lora_decoder`` also "vae", of which only the decoder draws images.

        Raises:
            UsageError: no layer of the decoder has the name of a target.
        """
        if not self.config.lora_decoder:
            return self.trainable
        decoder = self.pipeline.vae.decoder
        targets = self.config.lora.targets or self.config.lora_targets()
        if not matching([name for name, _ in decoder.named_modules()], targets):
            raise UsageError("backend.lora_decoder: no layer of the decoder has the name of a target of backend.lora")
        return nn.ModuleDict({self.trained_component: self.trainable, "vae": nn.ModuleDict({"decoder": decoder})})

    @property
    def network_dtype(self) -> torch.dtype:
        """Dtype of the trained network."""
        return getattr(torch, self.config.dtype)

    @property
    def stable_dtype(self) -> str:
        """Dtype of text encoders and autoencoders, which overflow in float16."""
        return "float32" if self.config.dtype == "float16" else self.config.dtype

    def component_config(self, name: str) -> dict[str, Any]:
        """The JSON settings of a component."""
        if name not in self._component_configs:
            file = f"{name}_config.json" if name in ("scheduler", "tokenizer") else "config.json"
            path = self.folder / name / file
            absent = self.is_outline and not path.is_file()
            self._component_configs[name] = {} if absent else read_json(path)
        return self._component_configs[name]

    # Text

    @abstractmethod
    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        """Rows of a micro-batch of prompts, without padding; ``pipeline`` holds only the text components."""

    def encoding(self) -> dict[str, Any]:
        """JSON options of this backend that change an embedding."""
        return {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        if self.is_outline:
            return rows_without_values(prompts, self.row_shapes(), self.ragged, self.stable_dtype)
        cache = EmbedsCache(
            {
                "pipeline": self.pipeline_names[0],
                "encoder": self._encoder_id,
                "variant": self.config.variant,
                "dtype": self.stable_dtype,
                "options": self.encoding(),
                "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "transformers")},
            },
            self.row_names,
        )
        with self.text.kept():
            return assemble(prompts, cache.fetch(prompts, self._encode_missing), self.ragged)

    @cached_property
    def _encoder_id(self) -> str:
        return checkpoints.fingerprint(self.folder, self.text_components)

    @cached_property
    def text(self) -> TextComponents:
        """Text encoders and tokenizers while they are needed; anything loaded before waits on the CPU meanwhile."""

        def load() -> Any:
            others = (self.trained_component, "vae")
            return self._load(others, {"default": self.stable_dtype}).to(self.device)

        return TextComponents(load, self.parked)

    @torch.no_grad()
    def _encode_missing(self, prompts: list[str]) -> Iterator[Row]:
        for part in split(len(prompts), self.config.text_micro_batch):
            with quiet_libraries():
                rows = self.encode_batch(self.text.pipeline, prompts[part])
            yield from rows

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, network and autoencoder wait on the CPU if they are loaded."""
        if self.turns:
            self.turns.put_back()
            yield
            return
        modules = [self.trainable, self.pipeline.vae] if "pipeline" in self.__dict__ else []
        for module in modules:
            module.to("cpu")
        try:
            yield
        finally:
            for module in modules:
                module.to(self.device)

    # Images

    def shapes(
        self, network: Mapping[str, Any], channels: int, cells: int | Sequence[int]
    ) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shape of an image's latents and (height, width) in pixels, see ``t2ialign_diffusers.sizes.shapes``."""
        vae, packing = self.component_config("vae"), self.config.packing
        return shapes(self.config.image_size, channels, cells, vae_factor(vae), sides(vae, network, packing))

    # LoRA

    def load_lora(self, path: str | Path, name: str = "default") -> None:
        """Load with the pipeline's own ``load_lora_weights``, and make sure that every tensor of the file was taken.

        A file in the layout of our exports goes there as it is. Any other one is read first, since diffusers gets some
        strengths wrong, and only warns about tensors that it does not take. A LoRA of the decoder beside it is loaded
        with ``load_lora_file``.

        Raises:
            UsageError: no LoRA, or tensors that this network does not take.
        """
        file = find(path)
        wanted = self.read_lora(file)
        own = {n: t for n, t in wanted.items() if not self.config.lora_decoder or not n.startswith("vae.")}
        prefix = "" if self.config.lora_decoder else f"{self.trained_component}."
        named = {f"{prefix}{n}": tensor for n, tensor in own.items()}
        with safe_open(file, "pt") as stream:
            as_it_is = set(stream.keys()) == set(named)
        source = (str(file.parent), {"weight_name": file.name}) if as_it_is else (named, {})
        try:
            with quiet_libraries():
                self.pipeline.load_lora_weights(source[0], adapter_name=name, **source[1])
        except (ValueError, KeyError, RuntimeError) as error:
            raise UsageError(f"{file}: diffusers cannot load this LoRA ({error})") from error
        move_adapters(self.trainable, self.device)
        taken = sum(name in parameter.split(".") for parameter, _ in self.trainable.named_parameters())
        if taken != len(named):
            raise UsageError(f"{file}: diffusers takes {taken} of {len(named)} tensors that fit the network")
        self._load_decoder_lora(file.with_name(DECODER_LORA_FILE), name)

    def _load_decoder_lora(self, file: Path, name: str) -> None:
        if file.is_file():
            move_adapters(load_lora_file(self.pipeline.vae, file, "vae", name).module, self.device)

    def lora_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = to_modules(tensors, self.trainable, self.original_names())
        return {
            name if name in tensors else f"{self.trained_component}.{name}": tensor for name, tensor in found.items()
        }

    def to_kohya(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_kohya(tensors, self.trainable, self.original_names())

    def write_fused(self, tensors: dict[str, Tensor], folder: Path) -> None:
        if self.turns:
            self.turns.put_back()
        networks = {self.trained_component: self.trainable}
        if self.config.lora_decoder:
            networks["vae"] = self.pipeline.vae
        else:
            tensors = {f"{self.trained_component}.{name}": tensor for name, tensor in tensors.items()}
        write_fused(self.folder, networks, tensors, folder, self.config.variant)
        if self.weightless:  # the network's scheduler came with it
            self.pipeline.scheduler.save_pretrained(folder / "scheduler")

    def original_names(self) -> Originals:
        """How the original checkpoint of the model calls its layers; empty where it does as diffusers does."""
        return originals(self.trainable)

    def _load(self, absent: Sequence[str], dtypes: dict[str, str], **components: Any) -> Any:
        """The pipeline with ready-made ``components``, without those in ``absent``; ``dtypes`` by component."""
        with quiet_libraries():
            import diffusers

            return getattr(diffusers, self.pipeline_names[0]).from_pretrained(
                self.folder,
                dtype={name: getattr(torch, dtype) for name, dtype in dtypes.items()},
                variant=self.config.variant,
                local_files_only=True,
                **self.load_options,
                **dict.fromkeys(absent),
                **components,
            )
