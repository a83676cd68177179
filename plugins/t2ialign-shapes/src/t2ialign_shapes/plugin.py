"""What the shapes world registers with t2ialign; imports no torch."""

from __future__ import annotations

import t2ialign
from t2ialign.hookspecs import Register


class ShapesRewardConfig(t2ialign.Config):
    """The exact rewards have no options."""


class ShapesGenEvalConfig(t2ialign.Config):
    """The reward has no options, but needs prompts with GenEval's metadata."""

    def reads(self) -> set[str]:
        return {"include"}


@t2ialign.hookimpl
def t2ialign_rewards(register: Register) -> None:
    """Register the exact judge of the shapes world, strict and graded."""
    register(
        "shapes-exact",
        "t2ialign_shapes.rewards:ShapesExact",
        config=ShapesRewardConfig,
        summary="1 if a shapes picture shows all that its prompt says, else 0 (exact)",
    )
    register(
        "shapes-graded",
        "t2ialign_shapes.rewards:ShapesGraded",
        config=ShapesRewardConfig,
        summary="how far a shapes picture shows what its prompt says, 0 to 1 (exact)",
    )
    register(
        "shapes-geneval",
        "t2ialign_shapes.rewards:ShapesGenEval",
        config=ShapesGenEvalConfig,
        summary="1 if a shapes picture shows what its prompt's GenEval metadata asks for, else 0 (exact)",
    )
