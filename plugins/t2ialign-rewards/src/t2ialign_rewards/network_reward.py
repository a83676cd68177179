"""What all rewards with a network of their own share: lazy load, micro-batches, a place to rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from t2ialign.parts.reward import Reward
from t2ialign.tensors.batching import split, with_oom_retry
from t2ialign_rewards.config import NetworkConfig


class NetworkReward(Reward):
    """A reward that is a frozen network (images, prompts) -> (B,); its config is a ``NetworkConfig``.

    Gradients flow to the images; the weights have none.
    """

    differentiable: ClassVar[bool] = True

    def __init__(self, config: NetworkConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._micro_batch = config.micro_batch

    @abstractmethod
    def load(self) -> nn.Module:
        """Build the network with its weights, on the CPU."""

    @cached_property
    def network(self) -> Any:
        """The network, loaded on first use."""
        # Weights made inside a caller's inference mode could never take part in a gradient afterwards.
        with torch.inference_mode(False):
            network = self.load().eval().requires_grad_(False)
            return network.to("cpu" if self.config.offload else self.device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        images = images.to(self.device)
        network = self._on_device()
        return self._in_micro_batches(lambda rows: network(images[rows], prompts[rows]), len(images))

    def _in_micro_batches(self, call: Callable[[slice], Tensor], count: int) -> Tensor:
        """``call`` on slices of ``count`` images, joined; a micro-batch that does not fit is halved."""

        def run(micro_batch: int) -> Tensor:
            return torch.cat([call(rows) for rows in split(count, micro_batch)])

        result, self._micro_batch = with_oom_retry(run, self._micro_batch)
        return result

    def _on_device(self) -> Callable[..., Tensor]:
        """The network as a callable on this device.

        Offloaded weights stay in CPU memory: the call works with copies, which live as long as a gradient needs them.
        """
        if not self.config.offload:
            return self.network
        tensors = chain(self.network.named_parameters(), self.network.named_buffers())
        copies = {name: tensor.to(self.device) for name, tensor in tensors}
        return partial(_call, self.network, copies)


def _call(network: nn.Module, tensors: dict[str, Tensor], *arguments: Any) -> Tensor:
    return torch.func.functional_call(network, tensors, arguments)
