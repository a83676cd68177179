"""The Sana Sprint network as a TrigFlow denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from t2ialign.parts.denoiser import Denoiser
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import Prediction, TrigFlowPath


class SprintPath(TrigFlowPath):
    """TrigFlow with the time grid that Sana Sprint was distilled for (SANA-Sprint, arXiv 2503.09641, table 1)."""

    def __init__(self) -> None:
        super().__init__(t_start=1.57080)  # the released schedule's rounding of pi / 2

    def times(self, steps: int) -> Tensor:
        if steps == 2:
            return torch.tensor([self.t_start, 1.3, self.t_end])
        return super().times(steps)


class SprintDenoiser(Denoiser):
    """A network trained on flow-matching inputs, asked in TrigFlow terms.

    With u = sin t / (cos t + sin t) and rho = sqrt(u^2 + (1 - u)^2), the network sees rho x at flow time u and gives v;
    the TrigFlow prediction is F = ((1 - 2u) rho x + (1 - 2u + 2u^2) v) / rho (SANA-Sprint, arXiv 2503.09641, eq. 7-8),
    and (x0, eps) is (x, F) turned by t. Everything is in units of sigma_data: x0 is the autoencoder's scaled latent.
    """

    def __init__(self, transformer: Any, conditioning: Conditioning, guidance_scale: float, path: SprintPath) -> None:
        super().__init__(path, conditioning)
        self.transformer = transformer
        self.guidance_scale = guidance_scale

    def rows(self, index: Tensor | Sequence[int]) -> SprintDenoiser:
        assert isinstance(self.path, SprintPath)
        return SprintDenoiser(self.transformer, self.conditioning[index], self.guidance_scale, self.path)

    def network_output(self, x: Tensor, t: Tensor) -> Tensor:
        u, rho = self._flow(t)
        return self._velocity(rho * x, u)

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        time = t.view(-1, 1, 1, 1)
        u, rho = self._flow(t)
        scaled = rho * x
        f = ((1 - 2 * u) * scaled + (1 - 2 * u + 2 * u**2) * self._velocity(scaled, u)) / rho
        return Prediction(
            x0=torch.cos(time) * x - torch.sin(time) * f,
            eps=torch.sin(time) * x + torch.cos(time) * f,
        )

    @staticmethod
    def _flow(t: Tensor) -> tuple[Tensor, Tensor]:
        """u and rho (B, 1, 1, 1) at TrigFlow times (B,)."""
        time = t.view(-1, 1, 1, 1)
        u = torch.sin(time) / (torch.cos(time) + torch.sin(time))
        return u, torch.sqrt(u**2 + (1 - u) ** 2)

    def _velocity(self, scaled: Tensor, u: Tensor) -> Tensor:
        """The network's v at rho x and flow time u."""
        dtype = self.transformer.dtype
        embeds = self.conditioning.tensors["prompt_embeds"]
        # In the embeddings' dtype, as the pipeline has it: in bfloat16 the rounding shows in the image.
        guidance = torch.full((len(scaled),), self.guidance_scale, dtype=embeds.dtype, device=scaled.device)
        velocity: Tensor = self.transformer(
            scaled.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=self.conditioning.tensors["prompt_attention_mask"],
            guidance=guidance * self.transformer.config.guidance_embeds_scale,
            timestep=u.flatten(),
            return_dict=False,
        )[0].float()
        return velocity
