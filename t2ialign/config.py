"""Base classes of the tables in a spec. Pure pydantic: importing this module never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from t2ialign.idle import Idle

Dtype = Literal["float32", "bfloat16", "float16"]
#: Marks a field whose text is a checkpoint: hub id, folder, or "pkg:<package>/<path>". Validation checks such fields
#: and makes folders absolute.
CHECKPOINT = "checkpoint reference"
Checkpoint = Annotated[str, CHECKPOINT]
#: Marks a field whose text is a LoRA: as a checkpoint, or a file, also one of a hub repository.
LORA = "LoRA reference"
#: Marks a field whose text is a file if it has a suffix, and else a known name. Validation looks for the file, below
#: the spec first, and makes it absolute.
LOCAL_FILE = "file or name"
#: Marks a field of [prompts], [evaluation] or [optimizer] whose text is a prompt file: a path relative to the spec, or
#: "pkg:<package>/<path>". Validation reads such files, and a run keeps copies; ``Spec.file`` gives the path.
PROMPT_FILE = "prompt file"
PromptFile = Annotated[str, PROMPT_FILE]
#: What the other parts must provide, by role: {"backend": {"lora"}, "reward": {"differentiable"}}.
Requirements = dict[str, set[str]]


class Config(BaseModel):
    """Options of one part. Unknown keys and wrong types are errors; values never change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,  # a field that takes them says so with Field(allow_inf_nan=True)
        defer_build=True,
    )
    #: Which kind of part has such options; "" fits rewards.
    role: ClassVar[str] = ""
    #: Options that do nothing at some settings of the others; those of the base classes count, too.
    idle: ClassVar[tuple[Idle, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _tuples_from_lists(cls, value: object, info: ValidationInfo) -> object:
        """TOML has only lists."""
        return value if info.field_name is None else _with_tuples(cls.model_fields[info.field_name].annotation, value)

    def provides(self) -> set[str]:
        """Capability words that depend on the options, on top of the registered ones."""
        return set()

    def withholds(self) -> dict[str, str]:
        """Capability words that the options take away -> what would give them back."""
        return {}

    def reads(self) -> set[str]:
        """Keys of a prompt's data without which a reward cannot score it; every prompt must have them."""
        return set()

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        """What of the prompts is not read, and what a checkpoint or its files make of the options.

        One sentence each, printed before the work, besides ``idle``. Files are looked at where they are on disk.
        """
        return []

    def misfits(self) -> dict[str, str]:
        """Options that do not fit files on disk -> what is wrong with them; validation asks once paths are absolute."""
        return {}

    def remedies(self) -> dict[str, str]:
        """Capability words that the options require -> what to do where another part lacks them."""
        return {}

    @classmethod
    def starter_prompts(cls) -> list[Any]:
        """Prompts that such a part understands, for ``init``, where it does not understand any text.

        Texts, or ``Prompt`` with what their file would know of them.
        """
        return []

    def problem_with(self, prompt: str) -> str:
        """What keeps a reward from scoring a prompt; empty if nothing does. Validation asks for every prompt."""
        return ""

    def requires(self) -> Requirements:
        """Requirements that depend on the options, on top of the registered ones."""
        return {}


def _with_tuples(kind: Any, value: object) -> object:
    """``value`` with tuples in place of lists where the type ``kind`` has tuples, at any depth."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is dict and inner and isinstance(value, dict):
        return {key: _with_tuples(inner[1], one) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    if origin in (list, tuple):
        kinds = [one for one in inner if one is not Ellipsis] or [Any]
        return origin(_with_tuples(kinds[min(i, len(kinds) - 1)], one) for i, one in enumerate(value))
    fitting = [one for one in inner if (get_origin(one) or one) in (list, tuple)]  # of a union, or below Annotated
    return _with_tuples(fitting[0], value) if fitting else value


class LoraConfig(Config):
    """``[backend.lora]``: the low-rank adapter that weight-training optimizers change."""

    rank: int = Field(4, ge=1, description="rank r of every adapted layer")
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; default: alpha = rank (scale 1)")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="module names or their dotted endings; default: the backend's own list",
    )
    init: Literal["random", "activations"] = Field(
        "random",
        description="start of A: 'random' (peft's Kaiming-uniform) or 'activations' (leading eigenvectors of the"
        " layer's inputs on the training prompts, scaled so that A x has rms 1). B starts at zero either way",
    )
    init_prompts: int = Field(72, ge=1, description="training prompts used by init = 'activations'")
    start: Annotated[str | None, LORA] = Field(
        None,
        description="a LoRA to go on from, of diffusers, PEFT, kohya or ours: file, folder, hub id or"
        " 'owner/name/<file>.safetensors'. It decides layers, ranks and strengths. Base images stay those of the model"
        " without it",
    )

    @model_validator(mode="after")
    def _one_start(self) -> LoraConfig:
        if self.start is not None:
            given = {"alpha": self.alpha is not None, "targets": self.targets is not None}
            given["init"] = self.init != "random"
            if others := [name for name, is_given in given.items() if is_given]:
                raise ValueError(f"start decides {' and '.join(others)}: leave one of them out")
        return self

    @property
    def scaling(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


LoraFormat = Literal["diffusers", "kohya", "peft", "fused"]


class ExportConfig(Config):
    """``[export]``: the forms of the LoRA that a run delivers."""

    formats: list[LoraFormat] | None = Field(
        None,
        description="'diffusers' (always written: the check and the model card rest on it), 'kohya' (ComfyUI, Forge,"
        " AUTOMATIC1111, sd-scripts), 'peft' (a folder for PeftModel), 'fused' (a whole checkpoint with the LoRA in"
        " its weights); default: what the model's usual clients read",
    )


class BackendConfig(Config):
    """Options that every backend understands. Subclass it and give ``checkpoint`` a default."""

    role: ClassVar[str] = "backend"

    checkpoint: Checkpoint = Field(
        description="hub id, local folder, or 'pkg:<package>/<path>' inside an installed package"
    )
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    dtype: Dtype = Field("bfloat16", description="dtype of the trained network; LoRA factors stay float32")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="the adapter, for optimizers that train one")
    shard: Literal["none", "fsdp"] = Field(
        "none",
        description="'fsdp' splits the frozen network's weights over the ranks of a run that trains a LoRA, for"
        " networks larger than one device; every forward pass then moves all of them",
    )
    #: Whether the network is called as a whole, as ``shard`` needs.
    can_shard: ClassVar[bool] = False

    @model_validator(mode="after")
    def _shardable(self) -> BackendConfig:
        if self.shard != "none" and not self.can_shard:
            raise ValueError("shard: this backend calls its network in parts, which cannot be sharded; leave it out")
        return self

    def withholds(self) -> dict[str, str]:
        return {} if self.shard == "none" else {"weights": "leave shard out"}

    def provides(self) -> set[str]:
        return {"weights"}

    def lora_targets(self) -> list[str]:
        """Default target modules when ``lora.targets`` is absent."""
        return []

    def lora_formats(self) -> dict[LoraFormat, str]:
        """Forms that an export of this model can have -> the programs that read them."""
        return {"diffusers": "t2ialign (load_lora_file)", "peft": "PEFT"}

    def usual_formats(self) -> list[LoraFormat]:
        """Forms that an export has unless the spec says otherwise."""
        return ["diffusers"]

    def lora_folders(self) -> dict[str, str]:
        """Sub-folders of the checkpoint with weights that take LoRA layers -> how the names of such layers start."""
        return {self.trainable_folder(): ""}

    def trainable_folder(self) -> str:
        """Sub-folder of the checkpoint with the trained network's safetensors ('' = the checkpoint itself)."""
        return ""


class SamplerConfig(Config):
    """Options of a sampler."""

    role: ClassVar[str] = "sampler"

    def evaluations(self) -> int:
        """Network evaluations (NFE) per image, without the doubling by classifier-free guidance."""
        return 1

    def with_more_evaluations(self) -> list[dict[str, Any]]:
        """``[sampler]`` tables with about twice the evaluations, the best first, for comparisons at equal cost.

        "kind" may name another sampler where this one cannot take more; the first that is installed and fits counts.
        """
        options = self.model_dump(mode="python", exclude_none=True)
        return [{**options, "steps": 2 * options["steps"]}] if isinstance(options.get("steps"), int) else []


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow", "swanlab"]

#: Leaves room for what is put behind a name: a number, ".tmp".
LONGEST_RUN_NAME = 200


class RunConfig(Config):
    """``[run]``."""

    name: str = Field(
        "",
        pattern=r"^[\w.-]*$",
        description="name of the run directory; default: the spec's file name",
    )
    seed: int = Field(0, ge=0, description="decides every draw of the run")
    steps: int = Field(100, ge=1, description="optimizer steps")
    out: str = Field("runs", min_length=1, description="the run directory is made inside it")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    micro_batch: int = Field(64, ge=1, description="images per forward pass; changes memory and speed, never results")
    matmul_precision: Literal["highest", "high", "medium"] | None = Field(
        None,
        description="float32 products on the device: 'highest' in float32, its convolutions too; 'high' may take TF32,"
        " 'medium' bfloat16 inside; default: torch's own setting",
    )
    deterministic: bool = Field(
        False,
        description="take the form of every operation that repeats its result to the bit, at the price of speed; those"
        " without one are named in a warning",
    )
    checkpoint_every: int = Field(
        10, ge=0, description="steps between checkpoints; the last step always has one, and 0 saves no other"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    keep: Literal["last", "best"] = Field(
        "last",
        description="what the run delivers: its last step, or the one with the highest first held-out reward in the"
        " evaluations along the run",
    )
    stop_on_drift: bool = Field(False, description="end the run, export and evaluation included, at the first alarm")
    trackers: list[TrackerName] = Field(
        [], description="where else metrics, images and tables go; each has options in [trackers.<name>]"
    )
    timeout: float = Field(
        3600.0,
        gt=0,
        description="seconds that the ranks of a run wait for each other before they give up: longer than any step",
    )
    nonfinite: Literal["stop", "drop"] = Field(
        "stop", description="a NaN or infinite score stops the run, or only that sample is left out"
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value and not value.strip("."):
            raise ValueError("must have a letter or digit")
        if (size := len(value.encode())) > LONGEST_RUN_NAME:
            raise ValueError(f"has {size} bytes; {LONGEST_RUN_NAME} are the most")
        return value


class PromptsConfig(Config):
    """``[prompts]``: what the optimizer trains on."""

    file: PromptFile = Field(
        min_length=1,
        description="prompt file (.txt, .jsonl, .json, .csv, .tsv, .parquet) or a folder with train.*, relative to the"
        " spec; 'pkg:<package>/<path>'; or 'hub:<owner>/<name>[:split]'",
    )
    column: str | None = Field(None, description="column or key of the prompt; default: the usual names")
    per_step: int = Field(4, ge=1, description="prompts drawn for each step")
    images_per_prompt: int = Field(1, ge=1, description="images per drawn prompt, each with its own seed")


class EvaluationConfig(Config):
    """``[evaluation]``: base against tuned on shared seeds."""

    every: int | None = Field(
        None,
        ge=0,
        description="steps between evaluations along the run, which then take all evaluation prompts; default: a few"
        " prompts, as often as 5 % of the run's images allow; 0: only at the end",
    )
    drift_threshold: float = Field(
        3.0,
        gt=0,
        description="the alarm is raised when a held-out reward falls, or the images degenerate, by more paired"
        " standard errors than this while the optimised reward rises",
    )
    prompts: Annotated[str | None, PROMPT_FILE] = Field(
        None, description="held-out prompt file; default: the training prompts"
    )
    column: str | None = Field(None, description="column or key of the prompt; default: the usual names")
    images_per_prompt: int = Field(1, ge=1, description="images per prompt, each with its own seed")
    limit: int | None = Field(None, ge=1, description="use only the first prompts of the file")
    seed: int = Field(0, ge=0, description="decides the evaluation's noise; independent of run.seed")
    save_images: bool = Field(True, description="write every evaluated image as PNG")


class SamplesConfig(Config):
    """``[samples]``: grids at fixed prompts and noise, from step 0 on."""

    every: int = Field(10, ge=0, description="steps between grids; 0 draws only the first and the last")
    count: int = Field(8, ge=1, le=64, description="prompts in a grid (the first of the evaluation prompts, spread)")


class RewardMixConfig(Config):
    """Keys that every ``[[reward]]`` table understands besides the reward's own options."""

    name: str | None = Field(None, description="label in metrics and tables; default: the kind")
    weight: float = Field(1.0, description="0 keeps the reward as a held-out diagnostic that is only logged")
    normalise: Literal["none", "range", "zscore", "zscore-prompt", "rank"] = Field(
        "none",
        description="before weighting: as it is, mapped from `range` to [0, 1], standardised over the batch or over"
        " each prompt's images, or centred ranks in [-0.5, 0.5] over the batch",
    )
    deterministic: bool = Field(
        False, description="refuse the run where this reward scores the same images otherwise the second time"
    )
    range: list[float] | None = Field(None, description="[low, high] for normalise = 'range'")

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (len(value) != 2 or not value[0] < value[1]):
            raise ValueError("must be [low, high] with low < high")
        return value
