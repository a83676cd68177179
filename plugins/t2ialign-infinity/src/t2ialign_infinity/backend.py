"""Infinity as a backend: text in, image out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from t2ialign import Backend, BackendInfo, Sampler, UsageError, checkpoints
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_infinity import ladders
from t2ialign_infinity.bits import BitQuantiser
from t2ialign_infinity.config import InfinityConfig
from t2ialign_infinity.rope import rotation
from t2ialign_infinity.sampling import Choose, DrawBits, sample_features
from t2ialign_infinity.text import PackedText, TextEncoder, flatter
from t2ialign_infinity.transformer import InfinityTransformer
from t2ialign_infinity.vae import BitVAE, wrapped_names
from t2ialign_infinity.variants import VARIANTS
from t2ialign_var.config import printed_options
from t2ialign_var.layers import first_scales
from t2ialign_var.loading import check_depth, fill, read_sizes, read_tensors

#: Constants in released files.
VAE_IGNORED = (r"^quantize[r]?\.lfq\.mask$",)


class InfinityBackend(Backend):
    """Infinity with its bit autoencoder and T5 text.

    The noise of an image is one unit Gaussian number z per bit; a bit is drawn at u = Phi(z).
    """

    Config = InfinityConfig

    def __init__(self, config: InfinityConfig, device: torch.device | str = "cpu") -> None:
        """Find and check the files; weights are loaded on first use, so that text can be encoded before.

        Raises:
            UsageError: files are missing.
        """
        super().__init__(config, device)
        variant = VARIANTS[config.variant]
        names = (variant.weights, variant.vae)
        folder = checkpoints.resolve(
            config.checkpoint,
            config.revision,
            [*names, f"{variant.weights}/*", "config.json", "infinity.safetensors", "vae.safetensors"],
        )
        self.sizes = {"transformer": variant.transformer, "vae": variant.autoencoder}
        if (folder / "config.json").is_file():
            names = ("infinity.safetensors", "vae.safetensors")
            self.sizes = read_sizes(folder / "config.json", "transformer", "vae")
        self.files = tuple(folder / name for name in names)
        for file in self.files:
            if not file.exists():
                raise UsageError(f"checkpoint '{config.checkpoint}' has no {file.name}")
        vae, transformer = self.sizes["vae"], self.sizes["transformer"]
        counts = [transformer["scales"]] if "scales" in transformer else ladders.SCALES.values()
        factor = 2 ** (len(vae["ch_mult"]) - 1)
        if config.image_size is not None:
            full, count = ladders.of_size(config.image_size, counts, 2 * factor if vae["patchify"] else factor)
        else:
            full = ladders.nearest(config.aspect_ratio)
            count = transformer.get("scales", ladders.SCALES[config.resolution or variant.resolution])
        self.quantiser = BitQuantiser(vae["bits"], full[:count], vae["patchify"])
        self.rotation = rotation(full[:count], full[-1], transformer["width"] // transformer["heads"]).to(self.device)
        self.guidance = per_scale(config.guidance_scale, count)
        self.tau = per_scale(config.tau or variant.tau, count)
        if -config.cfg_insertion_layer > (depth := transformer["depth"]):
            raise UsageError(
                f"backend.cfg_insertion_layer = {config.cfg_insertion_layer}: the model has {depth} blocks"
            )
        height, width = (side * factor for side in self.quantiser.grid(-1))
        self.info = BackendInfo(
            family="autoregressive",
            latent_shape=(sum(self.quantiser.tokens), transformer["bits"]),
            image_size=(height, width),
            base_model=config.checkpoint,
        )

    @cached_property
    def transformer(self) -> InfinityTransformer:
        sizes = {name: value for name, value in self.sizes["transformer"].items() if name != "scales"}
        with torch.device("meta"):
            module = InfinityTransformer(**sizes)
        weights = read_tensors(self.files[0])
        check_depth(weights, r"block_chunks\.\d+\.module\.\d+\.", sizes["depth"], self.files[0].name, "backend.variant")
        dtype = getattr(torch, self.config.dtype)
        return fill(module, weights, self.files[0].name, dtype, module.half_precision).to(self.device)

    @cached_property
    def vae(self) -> BitVAE:
        with torch.device("meta"):
            module = BitVAE(**self.sizes["vae"])
        weights = wrapped_names(read_tensors(self.files[1], entry="vae"))
        # Group norms of a deep decoder overflow in float16.
        dtype = torch.float32 if self.config.dtype == "float16" else getattr(torch, self.config.dtype)
        return fill(module, weights, self.files[1].name, dtype, module.half_precision, VAE_IGNORED).to(self.device)

    @property
    def trainable(self) -> nn.Module:
        return self.transformer

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        config = self.config
        texts = [flatter(prompt) if config.positive_prompt else prompt for prompt in prompts]
        length = self.sizes["transformer"]["text_length"]
        encoder = TextEncoder(config.text_encoder, config.text_dtype, length, self.device, config.text_micro_batch)
        return encoder.encode(prompts, texts)

    @torch.no_grad()
    def generate(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], RGB; bits are discrete, so there are no gradients.

        Args:
            conditioning: B rows.
            seeds: one per image.
            sampler: not used: the model samples itself.
            noise: unit Gaussian (B, L, bits) to use in place of the seeds' own.
        """
        noise = self.noise(seeds) if noise is None else noise
        choose = DrawBits(noise, self.quantiser.tokens, self.config.top_k, self.config.top_p)
        text = self._text(conditioning)
        return self.vae.decode(self._features(text, self.guidance, choose))

    @torch.no_grad()
    def draw_tokens(
        self, conditioning: Conditioning, seeds: Sequence[int], plain: bool = True, guided: bool = False
    ) -> tuple[Tensor, Tensor]:
        filters = (0, 1.0) if plain else (self.config.top_k, self.config.top_p)
        draws, drawn = DrawBits(self.noise(seeds), self.quantiser.tokens, *filters), list[Tensor]()

        def choose(scale: int, logits: Tensor) -> Tensor:
            drawn.append(draws(scale, logits))
            return drawn[-1]

        guidance = [1.0] * len(self.guidance) if plain and not guided else self.guidance
        text = self._text(conditioning)
        return self.vae.decode(self._features(text, guidance, choose)), torch.cat(drawn, dim=1)

    def _features(self, text: tuple[Tensor, Tensor], guidance: Sequence[float], choose: Choose) -> Tensor:
        insertion = self.config.cfg_insertion_layer
        return sample_features(
            self.transformer, self.quantiser, self.rotation, text, guidance, self.tau, choose, insertion=insertion
        )

    def log_prob(self, conditioning: Conditioning, tokens: Tensor, guided: bool = False) -> Tensor:
        with torch.no_grad():
            _, inputs = self.quantiser.unroll(tokens)
        guided = guided and any(c != 1 for c in self.guidance)
        count, insertion = tokens.shape[1], self.config.cfg_insertion_layer
        scale_of = self.scale_of[:count].to(tokens.device)
        packed = PackedText.pack(*self._text(conditioning), self.transformer.cfg_uncond if guided else None)
        c = torch.tensor(self.guidance, device=tokens.device)[scale_of]
        logits = self.transformer(
            packed,
            inputs.repeat(2, 1, 1) if guided else inputs,
            first_scales(self.quantiser.tokens, count),
            self.rotation[:count],
            (self.transformer.depth + insertion, c) if guided and insertion else None,
        )
        if guided:
            conditional, unconditional = logits.chunk(2)
            c = torch.ones_like(c) if insertion else c
            logits = c[:, None, None] * conditional + (1 - c[:, None, None]) * unconditional
        tau = torch.tensor(self.tau, device=tokens.device)[scale_of]
        bits = (logits / tau[:, None, None]).log_softmax(-1)
        return bits.gather(-1, tokens[..., None]).squeeze(-1).sum(-1)

    @property
    def scale_of(self) -> Tensor:
        return torch.arange(len(self.quantiser.tokens)).repeat_interleave(torch.tensor(self.quantiser.tokens))

    def _text(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        tensors = conditioning.to(self.device).tensors
        return tensors["text"], tensors["text_mask"]

    def snippet(self, sampler: Sampler | None = None) -> str:
        options = printed_options(self.config, "checkpoint", "variant", "dtype")
        return f"""\
# needs the package t2ialign-infinity
from pathlib import Path

from t2ialign_infinity.backend import InfinityBackend
from t2ialign_infinity.config import InfinityConfig

infinity = InfinityBackend(InfinityConfig({options}), "cuda")
infinity.load_lora(Path("."))  # the folder of this file
images = infinity.generate(infinity.encode(["a red fox in the snow"]), seeds=[0])  # (1, 3, H, W) in [0, 1]
"""


def per_scale(value: float | list[float], count: int) -> list[float]:
    """One number per scale: a single one for all, or a list whose last number goes on."""
    values = value if isinstance(value, list) else [value]
    return (values + values[-1:] * count)[:count]
