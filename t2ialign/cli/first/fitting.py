"""What goes with chosen kinds: the first sampler, settings and prompts that validate. No torch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotated_types import Le

from t2ialign.errors import SpecError, SpecProblem, UsageError
from t2ialign.plugins import Registry
from t2ialign.spec import parse as specs
from t2ialign.spec.prompts import Prompt, data_of

Tree = dict[str, Any]
#: For models and rewards that take any text.
ANY = (
    "a red apple on a wooden table",
    "two cats sleeping on a grey sofa",
    "a blue bicycle leaning against a brick wall",
    "a lighthouse by the sea at sunset",
    "a bowl of noodle soup, seen from above",
    "a small robot watering flowers",
    "a mountain village in deep snow",
    "a yellow car in front of a green house",
)
#: For rewards that look for words.
WORDS = (
    'a shop sign that says "OPEN"',
    'a birthday cake with "Happy 30" on it',
    'a chalkboard that says "Hello"',
    'a yellow taxi with "TAXI" on its roof',
)
#: For rewards that judge by GenEval's rules.
RULED = (
    Prompt("a photo of a dog", {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}),
    Prompt("a photo of two clocks", {"tag": "counting", "include": [{"class": "clock", "count": 2}]}),
    Prompt("a photo of a red bus", {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}]}),
    Prompt(
        "a photo of a cat and a chair",
        {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "chair", "count": 1}]},
    ),
)
#: Tried one after the other: some methods compare the images of one prompt.
SETTINGS: tuple[Tree, ...] = ({}, {"prompts": {"images_per_prompt": 4}}, {"evaluation": {"images_per_prompt": 2}})


@dataclass(frozen=True)
class Fit:
    """What validates: the spec's tables, starter prompts (none where a file was given), and the prompt file's name."""

    tree: Tree
    prompts: list[Prompt]
    file: str


def fit(parts: Registry, tree: Tree, folder: Path, source: str, prompts: str | None) -> Fit:
    """Complete the chosen kinds to a valid spec.

    Args:
        tree: at least the kinds of backend, optimizer and reward, and whatever was set.
        folder: of the spec.
        source: the spec's name, for messages.
        prompts: a prompt file; default: starter prompts that the parts understand.

    Raises:
        UsageError: no completion validates; says what stands in the way.
    """
    nearest: Sequence[SpecProblem] | None = None
    found: Sequence[SpecProblem] = ()
    with tempfile.TemporaryDirectory() as scratch:
        for sampler in _samplers(parts, tree):
            for settings in SETTINGS:
                for starters in [[]] if prompts else _starters(parts, tree):
                    file = prompts or ("prompts.jsonl" if any(map(data_of, starters)) else "prompts.txt")
                    tried = {key: dict(table) if isinstance(table, dict) else table for key, table in tree.items()}
                    if sampler is not None:
                        tried["sampler"] = {**sampler, **tree.get("sampler", {})}
                    for table, values in settings.items():
                        tried[table] = {**values, **tried.get(table, {})}
                    place = prompts or str(written(Path(scratch) / file, starters))
                    whole = {**tried, "prompts": {**tried.get("prompts", {}), "file": place}}
                    try:
                        specs.parse(whole, source, folder, parts)
                        return Fit(tried, starters, file)
                    except SpecError as error:
                        found = error.problems
                    if nearest is None or len(found) < len(nearest):
                        nearest = found
                    if not any(problem.key.startswith("prompts") for problem in found):
                        break  # no other prompts would help
                if not any("images_per_prompt" in str(problem) for problem in found):
                    break  # nor other settings
    lines = [f"  {problem}" for problem in nearest or ()]
    missing = any("missing key" in line for line in lines)
    hint = "\ngive what is missing with --set KEY=VALUE, for example --set reward.0.url=..." if missing else ""
    kinds = ", ".join((tree["backend"]["kind"], tree["optimizer"]["kind"], tree["reward"][0]["kind"]))
    raise UsageError("\n".join([f"{kinds}: nothing was written, since no spec of these validates", *lines]) + hint)


def _samplers(parts: Registry, tree: Tree) -> Iterator[Tree | None]:
    """Sampler tables that may fit, one-step ones first where the backend is of one step; None: the backend's own."""
    backend = parts.find("backend", tree["backend"]["kind"])
    if "denoiser" not in backend.provides:
        yield None
        return
    if "kind" in tree.get("sampler", {}):
        yield tree["sampler"]
        return
    found = parts.parts["sampler"]
    one = "one-step" in backend.provides
    for kind in sorted(found, key=lambda kind: (one and "one-step" not in found[kind].provides, kind)):
        yield {"kind": kind}
    for kind in sorted(found):  # an option may be what gives a word: eta > 0 makes a sampler stochastic
        for name, field in found[kind].config.model_fields.items():
            most = [bound.le for bound in field.metadata if isinstance(bound, Le)]
            if field.annotation is float and field.default == 0.0 and most:
                yield {"kind": kind, name: float(str(most[0]))}


def _starters(parts: Registry, tree: Tree) -> Iterator[list[Prompt]]:
    """Starter prompts: those that reward and backend know, then ours."""
    for role, table in (("reward", tree["reward"][0]), ("backend", tree["backend"])):
        declared = parts.find(role, table["kind"])
        if own := declared.config.starter_prompts():
            yield own
    for texts in (ANY, WORDS, RULED):
        yield [Prompt(text, data_of(text)) for text in texts]


def written(path: Path, prompts: Sequence[Prompt]) -> Path:
    """A prompt file: one text a line, or one object a line where the prompts have data."""
    rows = ({**data_of(prompt), "prompt": str(prompt)} for prompt in prompts)
    objects = path.suffix == ".jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] if objects else list(map(str, prompts))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
