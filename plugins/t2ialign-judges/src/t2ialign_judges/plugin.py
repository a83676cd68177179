"""The entry point: declarations only, so that listing and validating import no torch."""

from __future__ import annotations

import t2ialign
from t2ialign.hookspecs import Register
from t2ialign_judges import config


@t2ialign.hookimpl
def t2ialign_rewards(register: Register) -> None:
    """Register every reward of this package."""
    register(
        "geneval",
        "t2ialign_judges.geneval:GenEval",
        config=config.GenEvalConfig,
        summary="Objects, counts, colours and places by a detector and GenEval's rules; reads 'include'; no gradient",
    )
    register(
        "ocr",
        "t2ialign_judges.ocr:Ocr",
        config=config.OcrConfig,
        summary="Similarity of the text in the image to the text that the prompt quotes, 0 to 1; no gradient",
    )
    register(
        "vlm-judge",
        "t2ialign_judges.vlm.judge:VlmJudge",
        config=config.VlmJudgeConfig,
        summary="What a vision-language model says of an image, by an API or in this process, 0 to 1; no gradient",
    )
    register(
        "vlm-pairwise",
        "t2ialign_judges.vlm.pairwise:VlmPairwise",
        config=config.VlmPairwiseConfig,
        summary="Whether a vision-language model prefers an image to the base model's: 1, 0.5 or 0; no gradient",
        provides={"reference"},
    )
