"""What a bench compares: the base, with more evaluations too, LoRAs, runs, other samplers and specs. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ialign import places, plugins
from t2ialign.errors import UsageError
from t2ialign.spec import checkpoints
from t2ialign.spec import parse as specs
from t2ialign.spec.capabilities import capability_problems
from t2ialign.spec.model import Chosen, Spec
from t2ialign.storage.run_directory import RunDir


@dataclass(frozen=True)
class Variant:
    """One way to draw the suite.

    Attributes:
        name: of its folder and in tables.
        source: the spec file or run directory that it is loaded from.
        run: whether ``source`` is a run.
        tuned: as the run delivers it.
        lora: reference of a LoRA on the source's base.
        sampler: in place of the source's.
        about: what it is, as JSON: two variants are one if they are about the same.
    """

    name: str
    source: Path
    spec: Spec
    run: bool = False
    tuned: bool = False
    lora: str | None = None
    sampler: Chosen | None = None

    @property
    def about(self) -> dict[str, Any]:
        sampler = self.sampler or self.spec.sampler
        about: dict[str, Any] = {"backend": _table(self.spec.backend), "sampler": sampler and _table(sampler)}
        about["backend"].pop("lora", None)
        if self.lora is not None:
            about["lora"] = {"reference": self.lora, "sha256": _hash(self.lora)}
        if self.tuned:
            about["run"] = {"name": self.source.resolve().name, "step": RunDir(self.source).newest_step()}
        return about


def plan(
    sources: Sequence[str], overrides: Sequence[str], samplers: Mapping[str, Chosen], with_more: bool
) -> list[Variant]:
    """The variants of some sources; the first is the base that the others are compared with.

    Args:
        sources: spec files, run directories, LoRAs; the first is a spec or a run, which LoRAs are for.
        overrides: of the specs.
        samplers: further ones for the base, by name.
        with_more: offer the base with more evaluations too.

    Raises:
        UsageError: a source is none of these, or a sampler does not fit.
    """
    variants: list[Variant] = []
    for source in sources:
        try:
            path = places.path(source)
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from error
        is_run = path.is_dir() and (path / "spec.toml").is_file()
        if is_run or path.suffix == ".toml":
            spec = RunDir.open(path).spec(overrides) if is_run else specs.load(path, overrides)
            variants += _of_spec(path, spec, is_run, not variants, samplers, with_more)
        elif not variants:
            raise UsageError(f"{source}: the first source must be a spec (.toml) or a run directory")
        elif wrong := checkpoints.check_lora(source):
            raise UsageError(f"{source}: is no spec, no run directory, and as a LoRA {wrong}")
        else:
            first = variants[0]
            name = Path(source).parent.name if Path(source).stem == "pytorch_lora_weights" else Path(source).stem
            variants.append(Variant(name, first.source, first.spec, first.run, lora=source))
    return list(_named(variants))


def _of_spec(
    path: Path, spec: Spec, is_run: bool, first: bool, samplers: Mapping[str, Chosen], with_more: bool
) -> Iterator[Variant]:
    name = path.resolve().name if is_run else spec.name
    if first:
        yield Variant("base", path, spec, is_run)
        found = dict(samplers)
        if with_more and (more := with_more_evaluations(spec)):
            found.setdefault(f"{more.kind}-{_evaluations(more)}", more)
        for word, sampler in found.items():
            if problems := capability_problems(spec.backend, sampler, None, [], plugins.registry()):
                raise UsageError(f"--sampler {word}: {problems[0]}")
            yield Variant(f"base-{word}", path, spec, is_run, sampler=sampler)
    elif not is_run:
        yield Variant(name, path, spec)
    if is_run:
        yield Variant(name, path, spec, True, tuned=True)


def with_more_evaluations(spec: Spec) -> Chosen | None:
    """The spec's sampler with about twice the network evaluations, or another that its backend takes; None: neither."""
    if spec.sampler is None:
        return None
    for table in spec.sampler_config.with_more_evaluations():
        kind = table.get("kind", spec.sampler.kind)
        if kind in plugins.registry().parts["sampler"]:
            chosen = specs.parse_sampler({"kind": kind, **table}, "the base with more evaluations", spec.folder)
            if not capability_problems(spec.backend, chosen, None, [], plugins.registry()):
                return chosen
    return None


def _evaluations(sampler: Chosen) -> int:
    return sampler.config.evaluations()  # type: ignore[attr-defined]


def _named(variants: Sequence[Variant]) -> Iterator[Variant]:
    """Names that are folders' and distinct."""
    taken: set[str] = set()
    for variant in variants:
        name = base = re.sub(r"[^\w.-]+", "-", variant.name).strip("-.") or "variant"
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        yield Variant(**{**vars(variant), "name": name})


def _table(part: Chosen) -> dict[str, Any]:
    return {"kind": part.kind, **part.config.model_dump(mode="json", exclude_none=True)}


def _hash(reference: str) -> str | None:
    path = checkpoints.local_path(reference)
    if path is None:
        return None
    files = places.listed(path, "*.safetensors") if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
