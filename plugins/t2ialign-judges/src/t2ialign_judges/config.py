"""Options of this package's rewards. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2ialign.config import Checkpoint, Config, Dtype
from t2ialign.spec.prompts import data_of
from t2ialign_judges import rules, texts


class RulesConfig(Config):
    """Options of every reward that judges detections by GenEval's rules; prompts need GenEval's metadata."""

    form: rules.Form = Field(
        "lenient",
        description="'lenient': the benchmark's verdict, 0 or 1; 'strict': exact counts, 0 or 1; 'graded': how far, 0"
        " to 1; 'flow-grpo': the graded form of Flow-GRPO's code, not bounded below",
    )
    max_objects: int = Field(16, ge=1, description="objects of one class that count, the most confident ones")
    position_threshold: float = Field(
        0.1, ge=0, description="share of both objects' sizes by which their offset is shrunk before it is a relation"
    )

    def reads(self) -> set[str]:
        return {"include"}

    def problem_with(self, prompt: str) -> str:
        try:
            rules.read(data_of(prompt))
        except ValueError as error:
            return str(error)
        return ""


class GenEvalConfig(RulesConfig):
    """``geneval``."""

    model: Checkpoint = Field(
        "facebook/mask2former-swin-small-coco-instance",
        description="detector: a Mask2Former, OWLv2 or Grounding DINO in the transformers format; its config.json says"
        " which",
    )
    revision: str | None = Field(None, description="hub revision (branch, tag or commit) of the detector")
    dtype: Dtype = Field("float32", description="dtype of the detector's weights")
    threshold: float | None = Field(
        None, ge=0, le=1, description="least confidence; default: 0.3, OWLv2 0.1, Grounding DINO 0.25"
    )
    counting_threshold: float | None = Field(
        None, ge=0, le=1, description="the same for the tag 'counting'; default: 0.9, other detectors as threshold"
    )
    max_overlap: float | None = Field(
        None,
        gt=0,
        le=1,
        description="IoU from which on the less confident of two objects of a class is dropped, 1 drops none; default:"
        " 1, OWLv2 and Grounding DINO 0.5",
    )
    text_threshold: float = Field(0.25, ge=0, le=1, description="Grounding DINO: least score of a class name's tokens")
    clip: Checkpoint = Field("openai/clip-vit-large-patch14", description="CLIP model that tells colours")
    clip_revision: str | None = Field(None, description="hub revision of the CLIP model")


class OcrConfig(Config):
    """``ocr``: 0 to 1. Letters count without case and spaces."""

    form: Literal["similarity", "exact"] = Field(
        "similarity",
        description="'similarity': 1 - edit distance / letters of the target, as in Flow-GRPO; 'exact': 1 where the"
        " whole text in the image is the target, else 0",
    )
    contained: bool = Field(
        True, description="similarity: a target inside more text scores 1, as in Flow-GRPO; false counts that as edits"
    )
    key: str | None = Field(
        None, min_length=1, description="key of a prompt's data with the text; default: the text in quotation marks"
    )
    every: bool = Field(False, description="all parts in quotation marks, one after the other, instead of the first")
    side: int = Field(
        736,
        ge=64,
        description="larger images are made this many pixels long to look for text; less is faster and misses small"
        " letters",
    )
    upside_down: bool = Field(False, description="also read lines that stand on their head; costs a third network")

    def reads(self) -> set[str]:
        return set() if self.key is None else {self.key}

    def problem_with(self, prompt: str) -> str:
        try:
            texts.targets(prompt, self.key, self.every)
        except ValueError as error:
            return str(error)
        return ""
