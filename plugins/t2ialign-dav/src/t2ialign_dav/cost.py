"""What a searched trajectory costs; known before any weight is loaded. No torch.

One unit is one image: a forward is one denoiser evaluation (classifier-free guidance included), a decode one latent
through the autoencoder and the reward, a backward one gradient through reward, autoencoder and network.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Evaluations of the search, per trajectory or summed over some."""

    forwards: int = 0
    decodes: int = 0
    backwards: int = 0

    def per(self, trajectories: int) -> Cost:
        """The cost of one of them."""
        return Cost(self.forwards // trajectories, self.decodes // trajectories, self.backwards // trajectories)


def lockstep(steps: int, stochastic: int, particles: int, initial: int, guided: bool) -> Cost:
    """The search of ``e_step``: every particle's prediction is scored, and the survivor's is used again.

    Args:
        steps: T sampler steps.
        stochastic: S of them with noise; only there are particles drawn (the last step of many grids has none).
        particles: M.
        initial: I initial latents to choose from; 1 is no search.
        guided: value gradients are used.
    """
    branching = min(stochastic, steps - 1)  # the last step's candidates are decoded as they are
    scored = stochastic * particles if particles > 1 else 0
    return Cost(
        forwards=initial + branching * particles + (steps - 1 - branching) + guided * stochastic,
        decodes=(initial if initial > 1 else 0) + scored + guided * stochastic + 1,
        backwards=guided * stochastic,
    )


def tree(steps: int, particles: int, initial: int, guided: bool) -> Cost:
    """The search of the published code, ``upstream``: T + 1 expansions of M + 2 forwards each."""
    expansions = steps + 1
    return Cost(
        forwards=initial + expansions * (particles + 2),
        decodes=initial + expansions * (particles + guided) + 1,
        backwards=expansions * guided,
    )
