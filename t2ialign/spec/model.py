"""The spec as plain data: what was chosen, its options, and what the run is going to do. No torch."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from t2ialign.config import (
    PROMPT_FILE,
    BackendConfig,
    Config,
    EvaluationConfig,
    ExportConfig,
    LoraFormat,
    PromptsConfig,
    Requirements,
    RewardMixConfig,
    RunConfig,
    SamplerConfig,
    SamplesConfig,
)
from t2ialign.declaration import Declaration, checked_requirements, checked_words
from t2ialign.errors import PartError, UsageError, blaming, nearest
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import HUB, Prompt, from_hub, in_folder, read
from t2ialign.tracker_options import TrackersConfig

if TYPE_CHECKING:
    import torch


#: Which split of a data set's folder a table means.
SPLITS = {"evaluation": "test"}


@dataclass(frozen=True)
class Plan:
    """What a run is going to do; known before any weight is loaded.

    Attributes:
        steps: optimizer steps.
        images_per_step: images generated and scored in one step.
        notes: further derived numbers, each shown as ``name: value``.
        evaluations: network evaluations of one image; None: the sampler's. A search needs more.
        kept_images: images of a step that are in memory at once; None: all of them.
        image_cost: what an evaluated image costs, in images of a step; more where delivering one means a search.
    """

    steps: int
    images_per_step: int
    notes: dict[str, str] = field(default_factory=dict)
    evaluations: int | None = None
    image_cost: float = 1.0
    kept_images: int | None = None


class OptimizerConfig(Config):
    """Options of an optimizer."""

    role: ClassVar[str] = "optimizer"
    #: "package.module:function" that makes the text of a spec from a command line of another program, for
    #: ``t2ialign import-flags``; empty for none.
    foreign_command_line: ClassVar[str] = ""
    #: Whether ``run.steps`` says how much the optimizer does.
    uses_run_steps: ClassVar[bool] = True

    def plan(self, spec: Spec) -> Plan:
        """Derive the run's size from the spec, without torch and without weights.

        Raises:
            UsageError: the spec asks for something that this optimizer cannot do.
        """
        return Plan(spec.run.steps, spec.prompts.per_step * spec.prompts.images_per_prompt)

    def scale_free(self) -> bool:
        """Whether a common factor of all rewards changes nothing."""
        return False

    def calls_kept(self, evaluations: int) -> int | None:
        """Network calls of an image whose graphs lie in memory when the reward's gradient goes back through them.

        Args:
            evaluations: calls of the sampler for one image.

        Returns:
            what ``t2ialign estimate`` counts; None where it is not known.
        """
        return 1 if evaluations == 1 else None

    def further_prompts(self, spec: Spec) -> list[str]:
        """Texts besides the training and evaluation prompts that the optimizer draws: they are encoded with those."""
        return []


class LoraOptimizerConfig(OptimizerConfig):
    """Options of an optimizer that changes the LoRA."""

    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the LoRA, which grids, evaluation and export then use; default: none",
    )

    def requires(self) -> Requirements:
        needs = super().requires()
        needs.setdefault("backend", set()).add("lora")
        return needs


@dataclass(frozen=True)
class Chosen:
    """One part of a spec: what was registered, and its validated options."""

    declaration: Declaration
    config: Config

    def __post_init__(self) -> None:
        label = self.declaration.label
        with blaming(label):
            words, needs = self.config.provides(), self.config.requires()
        try:
            checked_words("provides() of its options", words)
            checked_requirements("requires() of its options", needs)
        except TypeError as error:
            raise PartError(f"{label}: {error}") from error

    @property
    def kind(self) -> str:
        return self.declaration.kind

    def provides(self) -> set[str]:
        return (set(self.declaration.provides) | self.config.provides()) - self.config.withholds().keys()

    def build(self, device: torch.device | str) -> Any:
        """The part itself, with its options, on a device.

        Raises:
            PartError: the registered class is not there, or no part of this role.
        """
        kind = self.declaration.load()
        with blaming(self.declaration.label):
            part = kind(self.config, device)
        part.label = self.declaration.label
        return part

    def requires(self) -> dict[str, set[str]]:
        combined = {role: set(words) for role, words in self.declaration.requires.items()}
        for role, words in self.config.requires().items():
            combined.setdefault(role, set()).update(words)
        return combined


@dataclass(frozen=True)
class ChosenReward(Chosen):
    """A reward with its place in the mix."""

    mix: RewardMixConfig

    @property
    def name(self) -> str:
        return self.mix.name or self.kind


@dataclass(frozen=True)
class Spec:
    """A complete, valid spec.

    Attributes:
        source: the file as the user named it.
        folder: relative paths in the spec start here.
    """

    source: str
    folder: Path
    run: RunConfig
    backend: Chosen
    sampler: Chosen | None
    optimizer: Chosen
    rewards: tuple[ChosenReward, ...]
    prompts: PromptsConfig
    evaluation: EvaluationConfig
    samples: SamplesConfig
    export: ExportConfig
    trackers: TrackersConfig = field(default_factory=TrackersConfig)

    @property
    def backend_config(self) -> BackendConfig:
        assert isinstance(self.backend.config, BackendConfig)
        return self.backend.config

    @property
    def optimizer_config(self) -> OptimizerConfig:
        assert isinstance(self.optimizer.config, OptimizerConfig)
        return self.optimizer.config

    @property
    def sampler_config(self) -> SamplerConfig:
        return (
            self.sampler.config if self.sampler and isinstance(self.sampler.config, SamplerConfig) else SamplerConfig()
        )

    @property
    def name(self) -> str:
        """Of the run: made from the file's name by the rule that ``run.name`` keeps to, where none is given."""
        stem = unicodedata.normalize("NFC", Path(self.source).stem)
        return self.run.name or re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"

    @property
    def uses_lora(self) -> bool:
        return "lora" in self.optimizer.requires().get("backend", set())

    @property
    def keeps(self) -> Literal["nothing", "network", "image"]:
        """What a step keeps for a backward pass: nothing, calls of the network, or all the way from noise to reward."""
        needs = self.optimizer.requires()
        if "differentiable" in needs.get("reward", set()):
            return "image"
        return "network" if "differentiable" in needs.get("backend", set()) else "nothing"

    def formats(self) -> list[LoraFormat]:
        """Forms of the exported LoRA, "diffusers" among them."""
        wanted: list[LoraFormat] = ["diffusers", *(self.export.formats or self.backend_config.usual_formats())]
        return list(dict.fromkeys(wanted))

    def check_images_are_scored_alone(self) -> None:
        """For searches, which work on every image by itself.

        Raises:
            UsageError: an optimised reward is normalised over several images.
        """
        for reward in self.rewards:
            if reward.mix.weight and reward.mix.normalise not in ("none", "range"):
                raise UsageError(
                    f"every image is searched on its own, but normalise = '{reward.mix.normalise}' of reward"
                    f" '{reward.name}' compares images; use 'none' or 'range'"
                )

    def file(self, reference: str, split: str = "train") -> Path:
        """A prompt file that the spec names; of a folder, the split's."""
        return existing(reference, self.folder, split)

    def prompt_file(self) -> Path:
        return self.file(self.prompts.file)

    def training_prompts(self) -> list[Prompt]:
        return read(self.prompt_file(), self.prompts.column)

    def evaluation_prompts(self) -> list[Prompt]:
        """The held-out prompts up to the limit; the training prompts where there are none."""
        own = self.evaluation.prompts
        found = read(self.file(own, "test"), self.evaluation.column) if own else self.training_prompts()
        return found[: self.evaluation.limit]

    def lora_start(self) -> Path | None:
        """The file of the LoRA on this machine that the run goes on from; None without one, or where it is the hub's.

        Raises:
            UsageError: the folder does not say which file it is.
        """
        start = self.backend_config.lora.start
        return checkpoints.find_lora(start) if start and self.uses_lora and checkpoints.local_path(start) else None

    def prompt_files(self) -> list[tuple[str, str, Path]]:
        """(table, key, file) of every prompt file that the spec names."""
        tables = {"prompts": self.prompts, "evaluation": self.evaluation, "optimizer": self.optimizer.config}
        return [(table, key, self.file(ref, SPLITS.get(table, "train"))) for table, key, ref in prompt_files(tables)]


def prompt_files(tables: Mapping[str, Config | None]) -> Iterator[tuple[str, str, str]]:
    """(table, key, reference) of every prompt file in some tables."""
    for table, config in tables.items():
        for key, options in type(config).model_fields.items() if config else ():
            if PROMPT_FILE in options.metadata and (reference := getattr(config, key)) is not None:
                yield table, key, reference


def formats_problem(backend: Chosen, formats: Sequence[str]) -> str:
    """What keeps a backend's LoRA from having some of the forms; empty when nothing does."""
    assert isinstance(backend.config, BackendConfig)
    known = backend.config.lora_formats()
    if wrong := [name for name in formats if name not in known]:
        return f"'{wrong[0]}' is no form for a LoRA of '{backend.kind}'; its forms: {', '.join(known)}."
    return ""


def existing(reference: str, folder: Path | None = None, split: str = "test") -> Path:
    """A prompt file by ``pkg:`` or ``hub:`` reference or path below a folder; of a folder, the split's file.

    Args:
        folder: default: the working folder.

    Raises:
        UsageError: there is none; names ones near it.
    """
    if reference.startswith(HUB):
        return from_hub(reference, Path(tempfile.mkdtemp(prefix="t2ialign-")))
    folder = folder or Path.cwd()
    path = checkpoints.local_path(reference, folder)
    if path is not None and path.is_file():
        return path
    if path is not None and path.is_dir():
        if found := in_folder(path, split):
            return found
        raise UsageError(f"the folder has no {split}.txt, {split}_metadata.jsonl or the like")
    parent = (folder / reference).parent
    siblings = [file.name for file in parent.iterdir() if file.is_file()] if parent.is_dir() else []
    near = nearest(Path(reference).name, siblings)
    raise UsageError(f"no such file below {folder}" + (f"; did you mean '{near}'?" if near else ""))
