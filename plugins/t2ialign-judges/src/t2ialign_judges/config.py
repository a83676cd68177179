"""Options of this package's rewards. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2ialign.config import CHECKPOINT, Checkpoint, Config, Dtype
from t2ialign.foreign import read_object
from t2ialign.idle import Idle
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import data_of
from t2ialign_judges import presets, rules, texts, vqa
from t2ialign_rewards.config import ServiceConfig, web_address


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

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "text_threshold",
            "only Grounding DINO scores the tokens of class names",
            lambda own, _: _detector(own.model) not in ("", "grounding-dino"),
        ),
        Idle("revision", "only weights of the hub have revisions", lambda own, _: checkpoints.is_local(own.model)),
        Idle("clip_revision", "only weights of the hub have revisions", lambda own, _: checkpoints.is_local(own.clip)),
    )

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


def _detector(reference: str) -> str:
    """A detector's model type, where its config.json is on disk."""
    folder = checkpoints.on_disk(reference)
    try:
        return str(read_object(folder / "config.json").get("model_type", "")) if folder else ""
    except (OSError, ValueError):
        return ""


class OcrConfig(Config):
    """``ocr``: 0 to 1. Letters count without case and spaces."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("contained", "form = 'exact' counts no edits", lambda own, _: own.form == "exact"),
        Idle("every", "key gives the text, quotation marks do not count", lambda own, _: own.key is not None),
    )

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


QUESTIONS = {
    "yes": 'Look at the picture. Does it show everything that this description says: "{prompt}"? Answer yes or no.',
    "number": 'How well does the picture show what this description says: "{prompt}"? Say in one sentence what is'
    " missing or wrong, then give a score from {least}, nothing of it, to {greatest}, all of it.",
    "questions": "{question} Answer with one word.",
    "pairwise": 'Two pictures were made for this description: "{prompt}". Which one is better, the first or the second?'
    " Look at what the description asks for first, then at how well the picture is made. Say why in one sentence, then"
    " name the winner: 1, 2, or tie.",
}


class AskingConfig(ServiceConfig):
    """Options of every judge: a model behind an API that speaks OpenAI's chat protocol, or one of transformers."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("votes", "temperature = 0 gives the same answer each time", lambda own, _: own.temperature == 0),
        Idle(
            "extra timeout silence backoff wait token_variable concurrency",
            "without url no service is asked",
            lambda own, _: own.url is None,
            "set url, or leave it out",
        ),
        Idle(
            "dtype revision",
            "the model behind url has its own",
            lambda own, _: own.url is not None,
        ),
        Idle("question", "rubric takes its place", lambda own, _: own.rubric is not None, "leave one of them out"),
    )

    model: str = Field(min_length=1, description="name of the model at the API; without url: hub id, folder or 'pkg:'")
    url: str | None = Field(
        None, description="the API, for example http://127.0.0.1:8000/v1; default: the model runs in this process"
    )
    question: str | None = Field(
        None,
        min_length=1,
        description="what is asked; {prompt} becomes the image's prompt. Default: does it follow it?",
    )
    rubric: Annotated[str | None, CHECKPOINT] = Field(
        None, description="a text file with the question, in place of question; relative to the spec"
    )
    temperature: float = Field(0.0, ge=0, description="of the model's sampling; votes differ only above 0")
    concurrency: int = Field(16, ge=1, description="questions under way at once")
    votes: int = Field(1, ge=1, description="answers per image, each with a seed of its own; their mean counts")
    max_tokens: int = Field(512, ge=1, description="most tokens of an answer in words")
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of every request, for example {chat_template_kwargs = {enable_thinking = false}}",
    )
    side: int | None = Field(
        None, ge=16, description="larger images are shown this many pixels long; default: as they are"
    )
    cache: bool = Field(True, description="keep opinions on disk, by image, prompt, question and model")
    budget: int | None = Field(
        None, ge=1, description="most calls of one process; then the run keeps its state and stops. Default: no limit"
    )
    revision: str | None = Field(None, description="hub revision of a model in this process")
    dtype: Dtype = Field("bfloat16", description="dtype of a model in this process")

    def usual_question(self) -> str:
        """What is asked where the spec does not say."""
        return QUESTIONS["yes"]

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)


class VlmJudgeConfig(AskingConfig):
    """``vlm-judge``: 0 to 1."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("relative", "only form = 'yes' reads it", lambda own, _: own.form != "yes"),
        Idle("scale pattern", "only form = 'number' reads it", lambda own, _: own.form != "number"),
        Idle("mean", "only form = 'questions' reads it", lambda own, _: own.form != "questions"),
    )

    preset: presets.Name | None = Field(
        None,
        description="a published judge: sets the options below and max_tokens, and asks in our words for what it was"
        " trained to answer. Other options of the spec win over it, and a rubric or a question replaces its words",
    )
    form: Literal["yes", "number", "questions"] = Field(
        "yes",
        description="'yes': the probability that the answer is yes; 'number': a number that the model writes, as JSON"
        " or where pattern finds it, mapped from scale to 0 to 1; 'questions': the mean probability of the right"
        " answers to the questions in a prompt's data (vqa_list)",
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        "arithmetic", description="form questions: how the probabilities of a prompt become one"
    )
    relative: bool = Field(
        True, description="form yes: P(yes) / (P(yes) + P(no)); false is P(yes) among all words, as in VQAScore"
    )
    scale: tuple[float, float] = Field((0.0, 10.0), description="form number: least and greatest")
    pattern: str | None = Field(
        None,
        description="form number: regular expression whose groups are numbers in the answer, for models that were"
        " trained on an answer of their own; default: JSON is asked for",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, table: Any) -> Any:
        return presets.options(table.get("preset")) | table if isinstance(table, dict) else table

    def reads(self) -> set[str]:
        return {vqa.KEY} if self.form == "questions" else set()

    def problem_with(self, prompt: str) -> str:
        if self.form != "questions":
            return ""
        try:
            vqa.questions(prompt)
        except ValueError as error:
            return str(error)
        return ""

    def usual_question(self) -> str:
        if published := presets.question(self.preset, self.form):
            return published
        least, greatest = (f"{value:g}" for value in self.scale)
        return QUESTIONS[self.form].replace("{least}", least).replace("{greatest}", greatest)

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("must be [least, greatest]")
        return value

    @field_validator("pattern")
    @classmethod
    def _with_groups(cls, value: str | None) -> str | None:
        try:
            groups = re.compile(value).groups if value is not None else 1
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        if not groups:
            raise ValueError("needs a group (...) around each number")
        return value


class VlmPairwiseConfig(AskingConfig):
    """``vlm-pairwise``: 1, 0.5 or 0."""

    sampler: dict[str, Any] | None = Field(
        None, validate_default=False, description="the sampler of the base image, as in [sampler]; default: the run's"
    )

    def usual_question(self) -> str:
        return QUESTIONS["pairwise"]

    @field_validator("sampler")
    @classmethod
    def _known(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        from t2ialign.spec.parse import parse_sampler

        if table is not None:
            parse_sampler(table, "reward.sampler")
        return table
