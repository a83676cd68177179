"""The spec: TOML in, one validated ``Spec`` out, or one ``SpecError`` with everything that is wrong. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from t2ialign import places
from t2ialign.config import (
    CHECKPOINT,
    LOCAL_FILE,
    LORA,
    Config,
    EvaluationConfig,
    ExportConfig,
    PromptsConfig,
    RewardMixConfig,
    RunConfig,
    SamplesConfig,
)
from t2ialign.declaration import Declaration
from t2ialign.errors import SpecError, SpecProblem, UsageError, blaming, nearest
from t2ialign.plugins import Registry, registry
from t2ialign.spec import checkpoints, prompts, toml
from t2ialign.spec.capabilities import capability_problems
from t2ialign.spec.model import SPLITS, Chosen, ChosenReward, Spec, existing, formats_problem, prompt_files
from t2ialign.spec.problems import from_pydantic, show
from t2ialign.tracker_options import TrackersConfig

C = TypeVar("C", bound=Config)
TABLES: dict[str, type[Config]] = {
    "run": RunConfig,
    "prompts": PromptsConfig,
    "evaluation": EvaluationConfig,
    "samples": SamplesConfig,
    "export": ExportConfig,
    "trackers": TrackersConfig,
}
PARTS = ("backend", "sampler", "optimizer", "reward")


def load(path: Path, overrides: Sequence[str] = (), tables: Mapping[str, Any] | None = None) -> Spec:
    """Read, override and validate a spec file.

    Args:
        path: the TOML file.
        overrides: ``dotted.key=value`` texts; the right side is TOML, or a plain text where it is no TOML.
        tables: whole tables in place of the file's.

    Raises:
        UsageError: the file cannot be read or is no TOML.
        SpecError: the content is wrong; names every problem.
    """
    tree = toml.read(path) | dict(tables or {})
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, str(path), path.resolve().parent)


def parse(tree: dict[str, Any], source: str, folder: Path, parts: Registry | None = None) -> Spec:
    """Validate a spec given as nested dicts; see ``load``."""
    return _Parser(tree, source, folder, parts or registry()).parse()


def parse_rewards(tables: Sequence[dict[str, Any]], source: str, folder: Path) -> tuple[ChosenReward, ...]:
    """Validate ``[[reward]]`` tables on their own; see ``load``."""
    parser = _Parser({"reward": list(tables)}, source, folder, registry())
    rewards = tuple(parser._rewards())
    for reward in rewards:
        if "per-prompt" in reward.provides():
            parser._problem("reward.kind", show(reward.kind), "compares the images of one prompt; only runs report it.")
        if "reference" in reward.provides():
            parser._problem("reward.kind", show(reward.kind), "compares with images of another sampler; only runs can.")
    if parser.problems:
        raise SpecError(source, parser.problems)
    return rewards


def parse_sampler(table: dict[str, Any], source: str = "sampler", folder: Path | None = None) -> Chosen:
    """Validate a ``[sampler]`` table on its own; see ``load``."""
    return parse_part("sampler", table, source, folder)


def parse_part(role: str, table: dict[str, Any], source: str, folder: Path | None = None) -> Chosen:
    """Validate one part's table on its own, without the keys of the reward mix; see ``load``."""
    parser = _Parser({role: table}, source, folder or Path.cwd(), registry())
    chosen = parser._part(role, table)
    if chosen is None or parser.problems:
        raise SpecError(source, parser.problems)
    return chosen


class _Parser:
    """Collects problems instead of stopping at the first."""

    def __init__(self, tree: dict[str, Any], source: str, folder: Path, parts: Registry) -> None:
        self.tree, self.source, self.folder, self.parts = tree, source, folder, parts
        self.problems: list[SpecProblem] = []

    def parse(self) -> Spec:
        known = [*TABLES, *PARTS]
        for key in self.tree.keys() - set(known):
            self._problem(key, "", f"unknown table; allowed: {', '.join(known)}.", nearest(key, known))

        tables = (
            self._table("run", RunConfig),
            self._table("prompts", PromptsConfig),
            self._table("evaluation", EvaluationConfig),
            self._table("samples", SamplesConfig),
            self._table("export", ExportConfig),
            self._table("trackers", TrackersConfig),
        )
        backend = self._part("backend", self.tree.get("backend"))
        optimizer = self._part("optimizer", self.tree.get("optimizer"))
        wants_sampler = "denoiser" in backend.provides() if backend else self._may_want_sampler()
        given = "sampler" in self.tree
        sampler = self._part("sampler", self.tree.get("sampler")) if given or wants_sampler else None
        rewards = self._rewards()
        options = optimizer.config if optimizer else None
        self._check_files({"prompts": tables[1], "evaluation": tables[2], "optimizer": options}, rewards)
        self._check_comparisons(rewards, tables[2])
        self._check_references(rewards, optimizer)
        self.problems += capability_problems(backend, sampler, optimizer, rewards, self.parts)
        run, prompt_table, evaluation, samples, export, trackers = tables
        if backend and optimizer and export and export.formats:
            self._check_formats(backend, optimizer, export.formats)
        trains = optimizer and "lora" in optimizer.requires().get("backend", set())
        if backend and optimizer and not trains and getattr(backend.config, "shard", "none") != "none":
            self._problem("backend.shard", '"fsdp"', f"optimizer '{optimizer.kind}' trains no LoRA; leave shard out.")
        if self.problems or not (
            backend and optimizer and run and prompt_table and evaluation and samples and export and trackers
        ):
            raise SpecError(self.source, self.problems)
        spec = Spec(
            self.source,
            self.folder,
            run,
            backend,
            sampler,
            optimizer,
            tuple(rewards),
            prompt_table,
            evaluation,
            samples,
            export,
            trackers,
        )
        try:
            with blaming(optimizer.declaration.label):
                spec.optimizer_config.plan(spec)
        except UsageError as error:
            raise SpecError(self.source, [SpecProblem("optimizer.kind", show(optimizer.kind), str(error))]) from error
        return spec

    def _problem(self, key: str, value: str, allowed: str, suggestion: str = "") -> None:
        self.problems.append(SpecProblem(key, value, allowed, suggestion))

    def _table(self, name: str, model: type[C]) -> C | None:
        table = self.tree.get(name, {})
        if not isinstance(table, dict):
            self._problem(name, show(table), "must be a table.")
            return None
        return self._validate(name, model, table)

    def _validate(self, key: str, model: type[C], table: dict[str, Any]) -> C | None:
        try:
            config = model.model_validate(table)
        except ValidationError as error:
            self.problems += from_pydantic(key, model, error)
            return None
        before = len(self.problems)
        located = self._locate_checkpoints(key, config)
        for name, wrong in located.misfits().items() if len(self.problems) == before else ():
            self._problem(f"{key}.{name}", show(getattr(located, name)), f"{wrong}.")
        return located

    def _locate_checkpoints(self, key: str, config: C) -> C:
        """Check every checkpoint reference, and make folders absolute so that the resolved spec works anywhere."""
        update: dict[str, Any] = {}
        for name, field in type(config).model_fields.items():
            reference = getattr(config, name)
            if isinstance(reference, Config):
                update[name] = self._locate_checkpoints(f"{key}.{name}", reference)
            elif isinstance(reference, list) and reference and isinstance(reference[0], Config):
                update[name] = [self._locate_checkpoints(f"{key}.{name}[{i}]", one) for i, one in enumerate(reference)]
            if reference is not None and LOCAL_FILE in field.metadata and Path(reference).suffix:
                if found := places.existing(reference, self.folder):
                    update[name] = str(found)
                else:
                    self._problem(f"{key}.{name}", show(reference), f"no such file below {self.folder}.")
            is_lora = LORA in field.metadata
            if reference is None or not (is_lora or CHECKPOINT in field.metadata):
                continue
            if wrong := (checkpoints.check_lora if is_lora else checkpoints.check)(reference, self.folder):
                self._problem(f"{key}.{name}", show(reference), f"{wrong}.")
            elif not reference.startswith("pkg:") and (found := checkpoints.local_path(reference, self.folder)):
                update[name] = str(found)
        return config.model_copy(update=update) if update else config

    def _part(self, role: str, table: Any) -> Chosen | None:
        found = self._declared(role, role, table)
        if found is None:
            return None
        config = self._validate(role, found.config, {k: v for k, v in table.items() if k != "kind"})
        return None if config is None else Chosen(found, config)

    def _may_want_sampler(self) -> bool:
        """Whether a backend whose options are wrong would need a sampler, as far as its kind alone says.

        A kind that nobody knows says nothing, so the missing sampler is left to the next look.
        """
        table = self.tree.get("backend")
        kind = table.get("kind") if isinstance(table, dict) else None
        found = self.parts.parts["backend"].get(kind) if isinstance(kind, str) else None
        return found is not None and "denoiser" in found.provides

    def _declared(self, role: str, key: str, table: Any) -> Declaration | None:
        kinds = sorted(self.parts.parts[role])
        if table is None:
            self._problem(key, "", f"missing table; give it a kind: {', '.join(kinds)}.")
        elif not isinstance(table, dict):
            self._problem(key, show(table), "must be a table.")
        elif not isinstance(table.get("kind"), str):
            self._problem(
                f"{key}.kind", show(table.get("kind")) if "kind" in table else "", f"must be one of {', '.join(kinds)}."
            )
        else:
            kind = table["kind"]
            try:
                found = self.parts.find(role, kind)
            except UsageError as error:
                hint = "" if kind in kinds else nearest(kind, kinds)
                self._problem(f"{key}.kind", show(kind), str(error), hint)
                return None
            if not (missing := found.missing()):
                return found
            self._problem(f"{key}.kind", show(kind), f"{found.label}: {missing}.")
        return None

    def _rewards(self) -> list[ChosenReward]:
        tables = self.tree.get("reward", [])
        if not isinstance(tables, list) or not tables:
            self._problem("reward", "", "needs at least one [[reward]] table.")
            return []
        chosen: list[ChosenReward] = []
        before = len(self.problems)
        for index, table in enumerate(tables):
            key = f"reward[{index}]"
            declared = self._declared("reward", key, table)
            if declared is None:
                continue
            clash = set(declared.config.model_fields) & set(RewardMixConfig.model_fields)
            own = {
                k: v for k, v in table.items() if k != "kind" and (k not in RewardMixConfig.model_fields or k in clash)
            }
            shared = {k: v for k, v in table.items() if k in RewardMixConfig.model_fields}
            mix = self._validate(key, RewardMixConfig, shared)
            config = self._validate(key, declared.config, own)
            if mix and config:
                chosen.append(ChosenReward(declared, config, mix))
        names = [reward.name for reward in chosen]
        for index, name in enumerate(names):
            if name in names[:index]:
                self._problem(
                    f"reward[{index}].name", show(name), "another reward has this name; give each its own 'name'."
                )
        if len(self.problems) == before and all(reward.mix.weight == 0 for reward in chosen):
            self._problem("reward", "", "every weight is 0: at least one reward must be optimised.")
        return chosen

    def _check_comparisons(self, rewards: Sequence[ChosenReward], evaluation: EvaluationConfig | None) -> None:
        """Rewards that compare the images of one prompt are diagnostics, and need images to compare."""
        for reward in rewards:
            if "per-prompt" not in reward.provides():
                continue
            kind = show(reward.kind)
            if reward.mix.weight != 0:
                self._problem("reward.kind", kind, "compares images and cannot be optimised: give it weight = 0.")
            if evaluation and evaluation.images_per_prompt < 2:
                self._problem(
                    "reward.kind",
                    kind,
                    "compares the images of one prompt: set evaluation.images_per_prompt to 2 or more.",
                )

    def _check_references(self, rewards: Sequence[ChosenReward], optimizer: Chosen | None) -> None:
        """Only some optimizers draw the images that a reference reward compares with."""
        for reward in rewards:
            if "reference" in reward.provides() and reward.mix.weight != 0 and optimizer:
                if "references" in optimizer.provides():
                    continue
                self._problem(
                    "reward.kind",
                    show(reward.kind),
                    f"compares with reference images, which optimizer '{optimizer.kind}' does not draw: give it"
                    " weight = 0, and evaluations still measure it.",
                )

    def _check_formats(self, backend: Chosen, optimizer: Chosen, formats: Sequence[str]) -> None:
        if "lora" not in optimizer.requires().get("backend", set()):
            self._problem("export.formats", show(formats), f"optimizer '{optimizer.kind}' delivers no LoRA.")
        elif wrong := formats_problem(backend, formats):
            self._problem("export.formats", show(formats), wrong)

    def _check_files(self, tables: Mapping[str, Config | None], rewards: Sequence[ChosenReward]) -> None:
        for table, key, reference in prompt_files(tables):
            if reference.startswith(prompts.HUB):  # needs a network; the run reads it
                continue
            try:
                path = existing(reference, self.folder, SPLITS.get(table, "train"))
                found = prompts.read(path, getattr(tables[table], "column", None))
            except UsageError as error:
                self._problem(f"{table}.{key}", show(reference), f"{error}.")
                continue
            for reward in rewards:
                with blaming(reward.declaration.label):
                    reasons = list(unfit(reward, found))
                for problem in reasons:
                    self._problem(f"{table}.{key}", show(reference), f"reward '{reward.name}' {problem}.")


def unfit(reward: ChosenReward, found: Sequence[prompts.Prompt]) -> Iterator[str]:
    """Why a reward cannot score some prompts: the first that lacks each key that it reads, or else that it refuses."""
    reads = sorted(reward.config.reads())
    lacking = [next(((i, p) for i, p in enumerate(found) if wanted not in p.data), None) for wanted in reads]
    for wanted, first in zip(reads, lacking, strict=True):
        if first:
            yield f"reads '{wanted}', which prompt {first[0]} ({show(str(first[1]))}) does not have"
    if not any(lacking):
        for index, prompt in enumerate(found):
            if why := reward.config.problem_with(prompt):
                yield f"cannot score prompt {index} ({show(str(prompt))}): {why}"
                return


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in the tree; list items by index: ``reward.0.weight=2`` or ``reward[0].weight=2``.

    Raises:
        UsageError: no '=', or the key runs into something that is no table or list item.
    """
    key, equals, text = override.partition("=")
    path = [part for part in re.split(r"[.\[\]]", key.strip()) if part]
    if not equals or not path:
        raise UsageError(f"--set {override}: write it as table.key=value")
    try:
        value = toml.value(text)
    except toml.TOMLError:
        value = text.strip()
    node: Any = tree
    for part, follower in zip(path, [*path[1:], None], strict=True):
        try:
            if isinstance(node, list):
                index = int(part)
                if follower is None:
                    node[index] = value
                node = node[index]
            elif follower is None:
                node[part] = value
            else:
                node = node.setdefault(part, {})
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise UsageError(f"--set {override}: '{part}' is no table, and no index of an existing list") from error
