"""Commands, files and places in pages that the docs name are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from t2ialign.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
COMMANDS = get_command(app).commands
TYPED = re.compile(r"(?:^|[\s`$])t2ialign ([a-z][a-z-]+[^`\n#]*)", re.MULTILINE)
FILES = re.compile(r"(?<![\w/.])((?:specs|tools|tests|examples)/[\w./-]+\.(?:py|toml|sbatch|ipynb|safetensors|json))")
LINKS = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)")
#: Written by mkdocs.
MADE = {"reference/spec.md"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def typed(text: str) -> list[list[str]]:
    """The words of every command line, quotes read; prose behind an apostrophe is none."""
    found = []
    for line in TYPED.findall(text.replace("\\\n", " ")):
        try:
            found.append(shlex.split(line))
        except ValueError:
            continue
    return [words for words in found if words and words[0] in COMMANDS]


@pages
def test_every_option_of_a_command_line_is_one(page):
    for name, *words in typed(page.read_text(encoding="utf-8")):
        options = {"--help"} | {word for one in COMMANDS[name].params for word in (*one.opts, *one.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options, name


def test_the_readme_has_command_lines():
    assert len(typed(PAGES[0].read_text(encoding="utf-8"))) > 8


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pages
def test_every_file_and_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in FILES.findall(text) if not (ROOT / name).exists()] == []
    for place, anchor in LINKS.findall(text):
        target = page.parent / place if place else page
        assert place in MADE or target.exists(), place
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{place}#{anchor}"
