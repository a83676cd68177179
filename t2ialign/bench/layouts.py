"""Where the scorers of benchmarks look for images. Layouts are data; no torch.

GenEval         <folder>/<digits>/metadata.jsonl and <folder>/<digits>/samples/<digits>.png; four images per prompt
T2I-CompBench   <folder>/samples/<prompt>_<number>.png, numbered prompt by prompt, nothing else beside them; ten images
                per prompt of a category's validation list
HPSv2           <folder>/<style>/<digits>.jpg; every entry of the folder is taken for a style
numbered        <folder>/<digits>_<slug>.png, as HyperscaleES scores PartiPrompts, which has no scorer of its own
PartiPrompts    <folder>/<number>/best_image.png and prompt.txt (the ReNO authors' own)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from t2ialign.errors import UsageError
from t2ialign.spec.tables import lines_of, text_of


@dataclass(frozen=True)
class Layout:
    """File names of a benchmark.

    Attributes:
        image: path of an image; knows {prompt} and its {slug}, {index} of the prompt, {image} of that prompt, and
            {number} over all.
        companions: path of one more file for every prompt -> what it holds, the prompt or its metadata line.
        forbidden: what a prompt must not contain, as a regular expression.
    """

    image: str
    companions: Mapping[str, Literal["prompt", "metadata"]] = field(default_factory=dict)
    forbidden: str | None = None

    def check(self, prompts: Sequence[str], images_per_prompt: int, file: Path) -> None:
        """Can images of these prompts be laid out?

        Raises:
            UsageError: no metadata, more images than the layout has names for, or a prompt that cannot be a file name.
        """
        if "metadata" in self.companions.values() and file.suffix != ".jsonl":
            raise UsageError(
                f"layout: needs the benchmark's own .jsonl as prompts.file, for its metadata; got {file.name}"
            )
        if images_per_prompt > 1 and not re.search(r"{(image|number)\b", self.image):
            raise UsageError(f"layout: has one image per prompt, not prompts.images_per_prompt = {images_per_prompt}")
        for prompt in prompts:
            if self.forbidden and (found := re.search(self.forbidden, prompt)):
                raise UsageError(f"layout: keeps the prompt in the file name, which cannot hold '{found[0]}': {prompt}")

    def images(self, prompts: Sequence[str], images_per_prompt: int) -> Iterator[tuple[str, int, int]]:
        """(path, index of the prompt, image of that prompt) of every image, in the scorer's order."""
        for index, prompt in enumerate(prompts):
            for image in range(images_per_prompt):
                yield self.path(prompt, index, image, images_per_prompt), index, image

    def path(self, prompt: str, index: int, image: int, images_per_prompt: int) -> str:
        """Where one image goes."""
        number = index * images_per_prompt + image
        slug = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:80]
        return self.image.format(prompt=prompt, slug=slug, index=index, image=image, number=number)

    def texts(self, prompts: Sequence[str], file: Path) -> Iterator[tuple[str, str]]:
        """(path, content) of every further file; ``file`` is the prompt file."""
        sources = {"prompt": prompts, "metadata": _lines(file)}
        for template, content in self.companions.items():
            for index, text in enumerate(sources[content]):
                yield template.format(index=index), text


def _lines(file: Path) -> list[str]:
    return [line for line in lines_of(text_of(file)) if line.strip()]


LAYOUTS = {
    "geneval": Layout("{index:05d}/samples/{image:05d}.png", {"{index:05d}/metadata.jsonl": "metadata"}),
    "t2i-compbench": Layout("samples/{prompt}_{number:06d}.png", forbidden=r"[/_\\\0]"),
    "hpsv2": Layout("{index:05d}.jpg"),
    "numbered": Layout("{index:04d}_{slug}.png"),
    "numbered-images": Layout("{index:04d}_{image:02d}_{slug}.png"),
    "parti-prompts": Layout("{index}/best_image.png", {"{index}/prompt.txt": "prompt"}),
}
