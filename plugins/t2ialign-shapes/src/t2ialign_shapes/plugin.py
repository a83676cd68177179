"""What the shapes world registers with t2ialign; imports no torch."""

from __future__ import annotations

import t2ialign
from t2ialign.hookspecs import Register
from t2ialign.spec.prompts import data_of
from t2ialign_judges.config import RulesConfig
from t2ialign_shapes.captions import foreign_word, parse

#: Prompts of this world with GenEval's metadata.
STARTERS = [
    t2ialign.Prompt("a triangle", {"tag": "single_object", "include": [{"class": "triangle", "count": 1}]}),
    t2ialign.Prompt("a red circle", {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}),
    t2ialign.Prompt(
        "a green square", {"tag": "colors", "include": [{"class": "square", "count": 1, "color": "green"}]}
    ),
    t2ialign.Prompt(
        "a circle and a square",
        {"tag": "two_object", "include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1}]},
    ),
]


class ShapesRewardConfig(t2ialign.Config):
    """The exact rewards have no options."""

    @classmethod
    def starter_prompts(cls) -> list[t2ialign.Prompt]:
        return STARTERS

    def problem_with(self, prompt: str) -> str:
        try:
            if not prompt.strip().isdigit():  # a class of ``var`` by its number, of which the reward sees the name
                parse(prompt)
        except ValueError:
            return "it is no caption of the shapes world; pkg:t2ialign_shapes/prompts/train.txt has examples"
        return ""


class ShapesGenEvalConfig(RulesConfig):
    """``shapes-geneval``: the options of GenEval's rules; prompts need GenEval's metadata, in this world's words."""

    @classmethod
    def starter_prompts(cls) -> list[t2ialign.Prompt]:
        return STARTERS

    def problem_with(self, prompt: str) -> str:
        data = data_of(prompt)
        return super().problem_with(prompt) or foreign_word([*data.get("include", ()), *data.get("exclude", ())])


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
        summary="GenEval's rules on the exact objects of a shapes picture; reads 'include'",
    )
