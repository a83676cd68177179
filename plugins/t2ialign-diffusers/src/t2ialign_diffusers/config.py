"""Options that every backend on a diffusers pipeline understands. Pure pydantic."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from t2ialign.config import CHECKPOINT, LORA, BackendConfig, Config, LoraFormat
from t2ialign.foreign import read_object, shown
from t2ialign.idle import Idle, given
from t2ialign.remarks.text_limits import TextLimit, cut_prompts
from t2ialign.sizes import ImageSize, height_width, off_grid
from t2ialign.sizes import shown as size_shown
from t2ialign.spec import checkpoints
from t2ialign_diffusers.sizes import off_bucket, sides, tile_side, trained_side, vae_factor

#: Words in names of checkpoints and LoRAs that were distilled to a few steps.
DISTILLED = {"turbo", "schnell", "lightning", "hyper", "lcm", "dmd", "dmd2", "sprint", "flash"}


def distilled(reference: str) -> bool:
    """Whether the name of a checkpoint, a LoRA or a file says that it was distilled to a few steps."""
    name = "/".join(reference.rsplit("/", 2)[-2:]).lower()
    return not DISTILLED.isdisjoint(re.split(r"[^a-z0-9]+", name))


def decoder_misfit(decoder: Path | None, checkpoint: Path | None) -> str:
    """What keeps a small decoder from drawing a checkpoint's latents, as far as what is on disk tells; "" if nothing.

    Args:
        decoder: its folder.
        checkpoint: a folder in the diffusers layout.
    """
    if decoder is None:
        return ""
    own = _settings(decoder / "config.json")
    if own.get("_class_name") != "AutoencoderTiny":
        return f"is no AutoencoderTiny of diffusers: {decoder}/config.json says {own.get('_class_name', 'nothing')}"
    real = _settings(checkpoint / "vae/config.json") if checkpoint else {}
    if not real:
        return ""
    given, wanted = own.get("latent_channels", 4), real.get("latent_channels", real.get("z_dim", 4))
    if given != wanted:
        return f"takes latents of {given} channels, and the checkpoint's have {wanted}"
    scale = own.get("upsampling_scaling_factor", 2) ** (len(own.get("decoder_block_out_channels", (64,) * 4)) - 1)
    if scale != (factor := vae_factor(real)):
        return f"makes images {scale} times as large as latents, and the checkpoint's own decoder {factor} times"
    return ""


#: Schedulers that clip where their configuration does not say.
CLIPPING = {f"{name}Scheduler" for name in ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "CogVideoXDDIM")}
#: Keys of autoencoders by which pipelines make the autoencoder's latents of the network's.
LATENT_KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def unheeded(vae: Mapping[str, Any], heeded: Collection[str]) -> str:
    """What an autoencoder's configuration asks for that the pipeline passes over; "" if nothing."""
    others = [f"{key} = {vae[key]}" for key in LATENT_KEYS if vae.get(key) and key not in heeded]
    if not others:
        return ""
    return (
        f"vae/config.json has {shown(', '.join(others), 80)}, which this kind of pipeline passes over (it heeds"
        f" {', '.join(heeded)}): the autoencoder is of another kind of model"
    )


def _settings(file: Path) -> dict[str, Any]:
    """Of a component; empty where there are none that can be read."""
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def _tokenizer(folder: Path) -> Any:
    """Of a folder with a vocabulary in a form of its own, such as CLIP's in SD1.5."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


class QuantizationConfig(Config):
    """``[backend.quantization]``: fewer bits for the linear layers of the trained network."""

    kind: Literal["int8", "float8", "nf4"] = Field(
        description="number format of the weights: 'int8' or 'float8' (package torchao), 4-bit 'nf4' (bitsandbytes)"
    )
    skip: list[str] = Field([], description="layers that keep the network's dtype: names or their dotted endings")


class BaseLora(Config):
    """``[[backend.base_lora]]``: a LoRA that becomes a part of the frozen model, such as Lightning, LCM or a style."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("weight", "a strength of 0 adds nothing", lambda own, _: own.weight == 0, "leave the table out"),
    )

    path: Annotated[str, LORA] = Field(
        description="a LoRA of diffusers, PEFT or kohya: file, folder, hub id or 'owner/name/<file>.safetensors'"
    )
    weight: float = Field(1.0, description="strength")


class DiffusersConfig(BackendConfig):
    """``[backend]`` of a diffusers pipeline."""

    can_shard: ClassVar[bool] = True
    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("vae_micro_batch", "vae_slicing decodes one image at a time", lambda own, _: own.vae_slicing),
        Idle(
            "vae_micro_batch",
            "run.micro_batch is no larger",
            lambda own, spec: own.vae_micro_batch >= spec.run.micro_batch and not own.vae_slicing,
            "lower it, or leave it out",
        ),
        Idle(
            "gradient_checkpointing",
            "the optimizer has no backward pass through the network",
            lambda own, spec: spec.keeps == "nothing",
        ),
        Idle(
            "gradient_checkpointing",
            "the optimizer has no backward pass through the decoder",
            lambda own, spec: spec.keeps == "network" and "decoder" in own.gradient_checkpointing,
            "leave 'decoder' out",
        ),
        Idle(
            "image_size",
            "a reward crops to the middle square, and does not see the ends of such images",
            lambda own, spec: (
                len(set(height_width(own.image_size))) > 1
                and any(getattr(reward.config, "resize", None) == "crop" for reward in spec.rewards)
            ),
            "set its resize to 'letterbox' or 'stretch'",
        ),
        Idle(
            "vae_tiling",
            "images are no larger than a tile of the decoder",
            lambda own, _: own.is_one_tile(),
        ),
        Idle(
            "checkpoint",
            "its scheduler clips or thresholds predictions, which only sampler.kind = 'diffusers' does",
            lambda own, spec: own.clips() and spec.sampler is not None and spec.sampler.kind != "diffusers",
            "take that sampler for the pipeline's own images",
        ),
        Idle("lora_decoder", "the optimizer trains no LoRA", lambda own, spec: not spec.uses_lora),
        Idle(
            "offload",
            "weights wait on the CPU anyway where run.device = 'cpu'",
            lambda own, spec: spec.run.device == "cpu",
        ),
    )
    #: Steps in the model card's example.
    usual_steps: ClassVar[int] = 20
    #: Latent cells along an axis that the pipeline packs into one token.
    packing: ClassVar[int] = 1
    #: Height and width are multiples of this in the released checkpoints.
    released_multiple: ClassVar[int] = 8
    #: Whether the pipeline keeps a scheduler's ``clip_sample``; that of Stable Diffusion 1 and 2 switches it off.
    keeps_clipping: ClassVar[bool] = True
    #: Whether the network was trained at the sizes of ``BUCKETS`` alone.
    has_buckets: ClassVar[bool] = False
    #: Keys of the autoencoder's configuration that the pipeline applies to latents.
    latent_keys: ClassVar[tuple[str, ...]] = ("scaling_factor",)

    variant: str | None = Field(
        None,
        pattern=r"^[\w-]+$",
        description="which of the checkpoint's weights, such as 'fp16'; components without them give their plain ones",
    )
    vae_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="dtype of the autoencoder; default: the network's, but float32 beside a float16 network"
    )
    vae_micro_batch: int | None = Field(
        None,
        ge=1,
        description="images that the decoder takes at once, out of the network's micro-batch; its activations are by"
        " far the larger ones. Default: all",
    )
    decoder: Annotated[str | None, CHECKPOINT] = Field(
        None,
        description="a small distilled decoder (AutoencoderTiny of diffusers, such as madebyollin/taesdxl) that draws"
        " while the run searches or trains; grids, evaluation and export keep the checkpoint's own. Default: that"
        " always",
    )
    vae_slicing: bool = Field(False, description="decode one image at a time: less memory, the same images")
    vae_tiling: bool = Field(
        False, description="decode large images in overlapping tiles: much less memory, faint differences at the seams"
    )
    gradient_checkpointing: list[Literal["network", "decoder"]] = Field(
        [],
        description="parts that compute their blocks' activations again in the backward pass instead of keeping them",
    )
    lora_decoder: bool = Field(
        False,
        description="LoRA in the decoder too, on its layers with the targets' names; a second file in the export",
    )
    base_lora: list[BaseLora] = Field([], description="LoRAs merged into the frozen network, one after the other")
    offload: Literal["none", "model", "blocks"] = Field(
        "none",
        description="weights that wait on the CPU until they are needed: 'model' lets the network and the decoder take"
        " turns on the device, 'blocks' the network's blocks one by one; the same images, slower",
    )
    quantization: QuantizationConfig | None = Field(
        None, description="fewer bits for the network's linear layers; the LoRA stays float32"
    )
    compile: Literal["none", "decoder", "default", "reduce-overhead", "max-autotune"] = Field(
        "none",
        description="torch.compile for the decoder, or for the network's blocks, too ('default'); 'reduce-overhead'"
        " adds CUDA graphs, 'max-autotune' a search for the fastest kernels as well; the first batches of a run take"
        " minutes, and images differ by rounding",
    )
    compile_fullgraph: bool = Field(
        False, description="end the run where a network cannot be compiled as one graph, instead of compiling its parts"
    )
    text_micro_batch: int = Field(
        8, ge=1, description="prompts that the text encoders take at once; their memory and speed alone"
    )
    image_size: ImageSize | None = Field(
        None,
        description="pixels per side, or [height, width]: multiples of the autoencoder's factor times the network's"
        " patch; default: as trained",
    )

    @model_validator(mode="after")
    def _one_place(self) -> DiffusersConfig:
        if self.quantization and self.offload != "none":
            raise ValueError(
                "quantised weights cannot wait on the CPU: set offload = 'none', or leave quantization out"
            )
        return self

    @model_validator(mode="after")
    def _whole(self) -> DiffusersConfig:
        given = {"offload": self.offload != "none", "quantization": bool(self.quantization)}
        given["compile"] = self.compile != "none"
        if self.shard != "none" and (others := [name for name, is_given in given.items() if is_given]):
            raise ValueError(f"sharded weights cannot go with {' and '.join(others)}: leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_decoder(self) -> DiffusersConfig:
        if self.decoder is not None and self.lora_decoder:
            raise ValueError("lora_decoder trains the decoder that decoder would replace: leave one of them out")
        return self

    @model_validator(mode="after")
    def _compilable(self) -> DiffusersConfig:
        if self.compile_fullgraph and self.compile == "none":
            raise ValueError("compile_fullgraph: nothing is compiled; set compile, or leave it out")
        if self.compile != "none" and self.offload != "none":
            raise ValueError("compiled code keeps its weights in place: set offload = 'none', or compile = 'none'")
        return self

    def text_limit(self, folder: Path) -> TextLimit | None:
        """How much of a prompt the text encoder with the longest limit reads; None where there is no telling."""
        return TextLimit()

    def folder(self) -> Path | None:
        """The checkpoint, once it is on disk."""
        return checkpoints.on_disk(self.checkpoint, self.revision)

    def network_folder(self) -> Path | None:
        """Where the trained network's configuration lies, once it is on disk."""
        folder = self.folder()
        return folder and folder / (self.trainable_folder() or "transformer")

    def sides(self) -> tuple[int, float] | None:
        """What height and width must be multiples of, and at most; None for a checkpoint that is yet to be fetched."""
        folder, network = self.folder(), self.network_folder()
        if folder is None or network is None:
            released = self.checkpoint == type(self).model_fields["checkpoint"].default
            return (self.released_multiple, math.inf) if released else None
        vae, own = _settings(folder / "vae" / "config.json"), _settings(network / "config.json")
        return sides(vae, own, self.packing) if vae and own else None

    def _sizes(self) -> tuple[int | None, int | None]:
        """Pixels along the square that was trained at, and along a tile of the decoder; None where nothing tells."""
        folder, network = self.folder(), self.network_folder()
        vae = _settings(folder / "vae/config.json") if folder else {}
        own = _settings(network / "config.json") if network else {}
        return (trained_side(vae, own), tile_side(vae)) if vae and own else (None, None)

    def is_one_tile(self) -> bool:
        """Whether tiles are no smaller than images, as far as what is on disk tells."""
        side, tile = self._sizes()
        size = self.image_size or side
        return tile is not None and size is not None and max(height_width(size)) <= tile

    def clips(self) -> bool:
        """Whether the checkpoint's scheduler clips or thresholds predictions in the model's own pipeline."""
        folder = self.folder()
        scheduler = _settings(folder / "scheduler/scheduler_config.json") if folder else {}
        clipped = scheduler.get("clip_sample", scheduler.get("_class_name") in CLIPPING)
        return bool(scheduler.get("thresholding") or (clipped and self.keeps_clipping))

    def misfits(self) -> dict[str, str]:
        found = {"decoder": self.decoder and decoder_misfit(checkpoints.on_disk(self.decoder), self.folder())}
        if self.image_size is not None and (allowed := self.sides()):
            found["image_size"] = off_grid(self.image_size, *allowed)
        if folder := self.folder():
            found["checkpoint"] = unheeded(_settings(folder / "vae" / "config.json"), self.latent_keys)
            if not (folder / "model_index.json").is_file() and checkpoints.is_local(self.checkpoint):
                found["checkpoint"] = "is no diffusers checkpoint: a folder with model_index.json and its components"
        return super().misfits() | {name: wrong for name, wrong in found.items() if wrong}

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        found, folder = super().remarks(prompts), self.folder()
        if folder is not None and (limit := self.text_limit(folder)):
            found += cut_prompts("the text encoder", limit, folder, prompts, _tokenizer)
            wanted, most = getattr(self, "max_sequence_length", None), limit.own(folder)
            if wanted and most and wanted > most and given(self, "max_sequence_length"):
                found.append(f"max_sequence_length = {wanted}: the tokenizer's own limit is {most} tokens")
        side, _ = self._sizes() if self.has_buckets and self.image_size is not None else (None, None)
        if side is not None and self.image_size is not None and (near := off_bucket(self.image_size, side)):
            size = size_shown(self.image_size)
            found.append(f"image_size = {size}: no size that the model was trained at; the nearest is {near}")
        return found

    def lora_formats(self) -> dict[LoraFormat, str]:
        formats: dict[LoraFormat, str] = {**super().lora_formats(), "diffusers": "diffusers"}
        return (
            formats if self.quantization or self.shard != "none" else {**formats, "fused": "what reads the checkpoint"}
        )

    def lora_folders(self) -> dict[str, str]:
        return super().lora_folders() | ({"vae": "decoder."} if self.lora_decoder else {})

    def provides(self) -> set[str]:
        own = (self.checkpoint, getattr(self, "network_checkpoint", None), getattr(self, "network_file", None))
        names = [*filter(None, own), *(lora.path for lora in self.base_lora)]
        return super().provides() | ({"few-step"} if any(map(distilled, names)) else set())

    def withholds(self) -> dict[str, str]:
        if self.quantization:
            return {"weights": "leave quantization out"}
        if self.offload == "none":
            return super().withholds()
        lost = {"weights": "set offload = 'none'"}
        if not (self.offload == "blocks" and "network" in self.gradient_checkpointing):
            lost["differentiable"] = "set offload = 'none', or 'blocks' with gradient_checkpointing = ['network']"
        return lost


class GuidedConfig(DiffusersConfig):
    """``[backend]`` of a pipeline with classifier-free guidance."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("negative_prompt", "guidance_scale switches guidance off", lambda own, _: not own.guided()),
        Idle(
            "guidance_scale",
            "guidance is off at any value from 0 to 1",
            lambda own, _: not own.guided() and own.guidance_scale not in (0.0, 1.0),
            "set a value above 1, or 1",
        ),
    )

    guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance; at most 1 switches it off")
    negative_prompt: str | None = Field(
        None, description="what guidance leads away from; default: the empty prompt, as the pipeline encodes it"
    )

    def guided(self) -> bool:
        """Whether there is a second, negative branch."""
        return self.guidance_scale > 1
