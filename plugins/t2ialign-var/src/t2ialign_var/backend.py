"""VAR as a backend: class in, image out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2ialign import Backend, BackendInfo, Sampler, UsageError, checkpoints
from t2ialign.spec.prompts import Prompt, data_of
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_var.classes import imagenet, read_classes
from t2ialign_var.config import VarConfig, printed_options
from t2ialign_var.loading import check_depth, fill, read_sizes, read_tensors
from t2ialign_var.sampling import Choose, DrawTokens, MixCodes, guided_logits, sample_features
from t2ialign_var.transformer import VarTransformer, released
from t2ialign_var.vqvae import RELEASED, VQVAE

VQVAE_FILE = "vae_ch160v4096z32.pth"
#: Constants and training statistics in released files.
TRANSFORMER_IGNORED = (r"^attn_bias_for_masking$", r"^lvl_1L$")
VQVAE_IGNORED = (r"^quantize\.ema_vocab_hit_SV$",)


class VarBackend(Backend):
    """VAR with its multi-scale VQVAE.

    The noise of an image is one unit Gaussian number z per token; a token is drawn at u = Phi(z).
    """

    Config = VarConfig

    def __init__(self, config: VarConfig, device: torch.device | str = "cpu") -> None:
        """Load both networks.

        Raises:
            UsageError: files are missing, damaged, or of another size than ``depth`` says.
        """
        super().__init__(config, device)
        files = (f"var_d{config.depth}.pth", VQVAE_FILE)
        folder = checkpoints.resolve(config.checkpoint, config.revision, [*files, "*.json", "*.safetensors"])
        dtype = getattr(torch, config.dtype)
        if (folder / "config.json").is_file():
            sizes, files = (
                read_sizes(folder / "config.json", "transformer", "vqvae"),
                ("var.safetensors", "vae.safetensors"),
            )
            self.classes = read_classes(folder / "classes.json", sizes["transformer"]["classes"])
        else:
            sizes = {"transformer": released(config.depth), "vqvae": RELEASED}
            self.classes = imagenet()
        weights = read_tensors(folder / files[0])
        check_depth(weights, r"blocks\.\d+\.", sizes["transformer"]["depth"], files[0], "backend.depth")
        with torch.device("meta"):
            transformer = VarTransformer(**sizes["transformer"])
            vqvae = VQVAE(sizes["transformer"]["patch_nums"], **sizes["vqvae"])
        self.transformer = fill(
            transformer, weights, files[0], dtype, VarTransformer.half_precision, TRANSFORMER_IGNORED
        ).to(self.device)
        # Group norms of a deep decoder overflow in float16.
        stable = torch.float32 if dtype == torch.float16 else dtype
        self.vqvae = fill(
            vqvae, read_tensors(folder / files[1]), files[1], stable, VQVAE.half_precision, VQVAE_IGNORED
        ).to(self.device)
        self.info = BackendInfo(
            family="autoregressive",
            latent_shape=(sum(transformer.tokens),),
            image_size=(vqvae.image_side, vqvae.image_side),
            base_model=config.checkpoint,
        )
        if why := config.only(vqvae.image_side):
            raise UsageError(f"backend.image_size: {why}")

    @property
    def trainable(self) -> nn.Module:
        return self.transformer

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Class numbers, class names or "a photo of" them; rewards see the latter, or a checkpoint's own names."""
        found = [self.classes.find(prompt) for prompt in prompts]
        texts = tuple(Prompt(self.classes.text(i), data_of(own)) for i, own in zip(found, prompts, strict=True))
        return Conditioning(texts, {"class_id": torch.tensor(found)})

    @torch.no_grad()
    def generate(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]; tokens are discrete, so there are no gradients.

        Args:
            conditioning: B rows.
            seeds: one per image.
            sampler: not used: the model samples itself.
            noise: unit Gaussian (B, L) to use in place of the seeds' own.
        """
        options, quantiser = self.config, self.vqvae.quantize
        noise = self.noise(seeds) if noise is None else noise
        choose: Choose = DrawTokens(quantiser, noise, options.top_k, options.top_p)
        if options.more_smooth:
            choose = MixCodes(quantiser, seeds, options.top_k, options.top_p)
        labels = conditioning.tensors["class_id"].to(self.device)
        return self.vqvae.decode(sample_features(self.transformer, quantiser, labels, options.guidance_scale, choose))

    @torch.no_grad()
    def draw_tokens(
        self, conditioning: Conditioning, seeds: Sequence[int], plain: bool = True, guided: bool = False
    ) -> tuple[Tensor, Tensor]:
        """
        Raises:
            UsageError: with ``more_smooth`` images have no tokens.
        """
        options, quantiser, drawn = self.config, self.vqvae.quantize, list[Tensor]()
        if options.more_smooth:
            raise UsageError("backend.more_smooth: mixed codes are no tokens; set it to false")
        filters = (0, 1.0) if plain else (options.top_k, options.top_p)
        draws = DrawTokens(quantiser, self.noise(seeds), *filters)

        def choose(scale: int, logits: Tensor) -> Tensor:
            drawn.append(draws.tokens(scale, logits))
            return quantiser.embedding(drawn[-1])

        labels = conditioning.tensors["class_id"].to(self.device)
        guidance = 0.0 if plain and not guided else options.guidance_scale
        features = sample_features(self.transformer, quantiser, labels, guidance, choose)
        return self.vqvae.decode(features), torch.cat(drawn, dim=1)

    def log_prob(self, conditioning: Conditioning, tokens: Tensor, guided: bool = False) -> Tensor:
        with torch.no_grad():
            _, inputs = self.vqvae.quantize.unroll(tokens)
        labels = conditioning.tensors["class_id"].to(self.device)
        if guided and self.config.guidance_scale > 0:
            doubled = torch.cat([labels, torch.full_like(labels, self.transformer.classes)])
            conditional, unconditional = self.transformer(doubled, inputs.repeat(2, 1, 1)).chunk(2)
            scale = self.scale_of[: tokens.shape[1]].to(self.device)[:, None]
            scales, strength = len(self.transformer.tokens), self.config.guidance_scale
            logits = guided_logits(conditional, unconditional, scale, scales, strength)
        else:
            logits = self.transformer(labels, inputs)
        return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

    @property
    def scale_of(self) -> Tensor:
        return torch.arange(len(self.transformer.tokens)).repeat_interleave(torch.tensor(self.transformer.tokens))

    def snippet(self, sampler: Sampler | None = None) -> str:
        options = printed_options(self.config, "checkpoint", "depth", "dtype")
        return f"""\
# needs the package t2ialign-var
from pathlib import Path

from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig

var = VarBackend(VarConfig({options}), "cuda")
var.load_lora(Path("."))  # the folder of this file
images = var.generate(var.encode([{self.classes.names[0]!r}]), seeds=[0])  # (1, 3, H, W) in [0, 1]
"""
