"""Prompt suites as data: which prompts, how many images, which seeds, which file names. No torch.

Facts of each suite's protocol: images per prompt and seeds are its authors' (GenEval: 4, ReNO's seeds 0 to 3;
T2I-CompBench: 10, seeds 42 to 51; PartiPrompts: 1, the prompt's number); where they state none, image i over all has
seed i. The files are the suites' own and are not part of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from t2ialign import places
from t2ialign.bench.layouts import LAYOUTS, Layout
from t2ialign.errors import UsageError, nearest
from t2ialign.spec import prompts as prompt_files
from t2ialign.spec.model import existing
from t2ialign.spec.prompts import HUB, Prompt, data_of
from t2ialign.spec.tables import lines_of, text_of


@dataclass(frozen=True)
class Suite:
    """A benchmark's protocol.

    Attributes:
        kind: its word on the command line.
        layout: names of its images, below a folder of each list where there are several.
        images_per_prompt: of the protocol.
        seeds: image i of a prompt has seed ``first_seed + i`` ("image"), or its number over all its list ("number").
        lists: names of its prompt files without the ending, each a category; empty where there is one file.
        groups: keys of a prompt's data by which results are split, beside the lists.
        brings: what ``--prompts`` is.
        default: where the prompts are if nothing is given.
        rewards: scored besides those of the spec.
    """

    kind: str
    title: str
    layout: Layout
    images_per_prompt: int = 1
    seeds: Literal["image", "number"] = "number"
    first_seed: int = 0
    lists: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    brings: str = ""
    default: str | None = None
    rewards: tuple[str, ...] = ()


COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
SUITES = {
    suite.kind: suite
    for suite in (
        Suite(
            "parti",
            "PartiPrompts",
            LAYOUTS["numbered"],
            groups=("Category", "Challenge"),
            brings="PartiPrompts.tsv of google-research/parti",
            default="hub:nateraw/parti-prompts:train",
        ),
        Suite(
            "geneval",
            "GenEval",
            LAYOUTS["geneval"],
            4,
            "image",
            groups=("tag",),
            brings="prompts/evaluation_metadata.jsonl of djghosh13/geneval",
        ),
        Suite(
            "t2i-compbench",
            "T2I-CompBench",
            LAYOUTS["t2i-compbench"],
            10,
            "image",
            42,
            lists=tuple(f"{name}_val" for name in COMPBENCH),
            brings="examples/dataset/ of Karine-Huang/T2I-CompBench, or one category's <name>_val.txt",
        ),
        Suite(
            "drawbench",
            "DrawBench",
            LAYOUTS["hpsv2"],
            groups=("Category",),
            brings="a DrawBench.csv with the columns Prompts and Category",
        ),
        Suite(
            "hpsv2",
            "HPSv2",
            LAYOUTS["hpsv2"],
            lists=("anime", "concept-art", "paintings", "photo"),
            brings="benchmark/ of zhwang/HPDv2, a folder of <style>.json",
        ),
        Suite(
            "shapes",
            "shapes benchmark",
            LAYOUTS["geneval"],
            4,
            groups=("tag",),
            brings="the prompts of t2ialign-shapes",
            default="pkg:t2ialign_shapes/prompts/benchmark.jsonl",
            rewards=("shapes-exact",),
        ),
    )
}
#: A file of one's own.
OWN = Suite("own", "own prompts", LAYOUTS["numbered"])


@dataclass(frozen=True)
class Item:
    """One image to draw.

    Attributes:
        list: the prompt list that it is of; "" where there is one.
        index: of its prompt in that list.
        image: of that prompt.
        file: where it goes, below a variant's folder.
    """

    prompt: Prompt
    list: str
    index: int
    image: int
    seed: int
    file: str


@dataclass(frozen=True)
class Suited:
    """A suite with its prompts.

    Attributes:
        files: list name -> the file that it was read from.
        lists: list name -> its prompts.
        fingerprint: of what the files hold.
    """

    suite: Suite
    files: dict[str, Path]
    lists: dict[str, list[Prompt]]
    fingerprint: str

    def items(self, seed: int | None = None, limit: int | None = None) -> list[Item]:
        """All images, list by list, prompt by prompt.

        Args:
            seed: in place of the protocol's first one.
            limit: at most so many prompts of each list, evenly spread; numbers and names stay those of the whole list.
        """
        suite, first = self.suite, self.suite.first_seed if seed is None else seed
        count = suite.images_per_prompt
        items = []
        for name, prompts in self.lists.items():
            kept = min(limit or len(prompts), len(prompts))
            for index in (place * len(prompts) // kept for place in range(kept)):
                for image in range(count):
                    own = image if suite.seeds == "image" else index * count + image
                    path = suite.layout.path(prompts[index], index, image, count)
                    items.append(
                        Item(prompts[index], name, index, image, first + own, f"{name}/{path}" if name else path)
                    )
        return items

    def texts(self, items: Sequence[Item]) -> dict[str, str]:
        """Further files that the layout asks for beside some images: path below a variant's folder -> content."""
        found: dict[str, str] = {}
        for name, prompts in self.lists.items():
            wanted = {item.index for item in items if item.list == name}
            sources = {"prompt": list(map(str, prompts)), "metadata": _lines(self.files[name])}
            for template, content in self.suite.layout.companions.items():
                for index in wanted:
                    path = template.format(index=index)
                    found[f"{name}/{path}" if name else path] = sources[content][index]
        return found

    def categories(self, item: Item) -> list[str]:
        """Where an image counts besides the whole: its list, and the values of its groups."""
        data = {str(key).lower(): value for key, value in data_of(item.prompt).items()}
        keys = self.suite.groups or ("category", "tag", "challenge") * (not self.suite.lists)
        found = [(key, str(data[key.lower()]).strip()) for key in keys if data.get(key.lower())]
        named = [f"{key}: {value}" if len(self.suite.groups) > 1 else value for key, value in found]
        return ([item.list.removesuffix("_val")] if item.list else []) + named


def open_suite(word: str, reference: str | None, column: str | None, images_per_prompt: int | None) -> Suited:
    """A suite by its word, or a prompt file of one's own.

    Args:
        reference: ``--prompts``: the suite's file or folder, ``pkg:`` or ``hub:``.
        column: of the prompts, where it is not one of the usual names.
        images_per_prompt: in place of the protocol's.

    Raises:
        UsageError: no such suite or file, no prompts for it, or prompts that its file names cannot hold.
    """
    if word in SUITES:
        suite = SUITES[word]
        place = reference or suite.default
        if place is None:
            raise UsageError(f"{word} needs --prompts: {suite.brings}")
    elif reference is None and (word.startswith(("pkg:", HUB)) or Path(word).suffix or places.existing(word)):
        suite, place = OWN, word
    else:
        near = nearest(word, SUITES)
        hint = f"; did you mean '{near}'?" if near else ""
        raise UsageError(f"no suite '{word}', and no prompt file{hint} Suites: {', '.join(SUITES)}")
    if images_per_prompt is not None and images_per_prompt != suite.images_per_prompt:
        several = suite.layout is LAYOUTS["numbered"] and images_per_prompt > 1
        layout = LAYOUTS["numbered-images"] if several else suite.layout
        suite = replace(suite, images_per_prompt=images_per_prompt, layout=layout)
    files = _files(suite, place)
    suite = replace(suite, lists=() if "" in files else tuple(files))
    lists = {name: prompt_files.read(path, column) for name, path in files.items()}
    for name, prompts in lists.items():
        suite.layout.check(prompts, suite.images_per_prompt, files[name])
    content = hashlib.sha256(b"".join(path.read_bytes() for path in files.values())).hexdigest()
    return Suited(suite, files, lists, content)


def _files(suite: Suite, place: str) -> dict[str, Path]:
    """List name -> file; "" where there is one that is no list of the suite."""
    folder = places.existing(place)
    if suite.lists and folder is not None and folder.is_dir():
        found = {file.stem: file for file in places.listed(folder) if file.suffix.lower() in prompt_files.READERS}
        if files := {name: found[name] for name in suite.lists if name in found}:
            return files
        raise UsageError(f"--prompts {place}: none of {', '.join(suite.lists)} is there; it needs {suite.brings}")
    try:
        path = existing(place, Path.cwd(), "test")
    except UsageError as error:
        need = f"; {suite.kind} needs {suite.brings}" if suite.brings else ""
        raise UsageError(f"--prompts {place}: {error}{need}") from error
    return {path.stem if path.stem in suite.lists else "": path}


def _lines(file: Path) -> list[str]:
    return [line for line in lines_of(text_of(file)) if line.strip()] if file.suffix == ".jsonl" else []
