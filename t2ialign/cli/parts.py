"""Parts of a spec as options of a command: ``kind`` or ``kind={key = value}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ialign import plugins
from t2ialign.config import SamplerConfig
from t2ialign.errors import UsageError, nearest
from t2ialign.spec import toml
from t2ialign.spec.model import Chosen, existing
from t2ialign.spec.parse import parse_sampler

#: Generators take no larger ones.
MOST_SEED = 2**63 - 1


def prompt_file_of(reference: Path) -> Path:
    """The prompt file behind ``--prompts``, in all the ways that a spec may name one.

    Raises:
        UsageError: there is none.
    """
    try:
        return existing(str(reference))
    except UsageError as error:
        raise UsageError(f"--prompts {reference}: {error}") from error


def parse_part(text: str, option: str) -> dict[str, Any]:
    """The part's table.

    Raises:
        UsageError: the options are no TOML inline table.
    """
    kind, equals, options = text.partition("=")
    try:
        table = toml.value(options) if equals else {}
    except toml.TOMLError:
        table = None
    if not isinstance(table, dict):
        raise UsageError(f"{option} {text}: write options as a TOML inline table, {kind}={{key = value}}")
    return {"kind": kind.strip(), **table}


def parse_search(text: str) -> dict[str, Any]:
    """The ``[optimizer]`` table of a search.

    Raises:
        UsageError: no such kind, or an optimizer that trains.
    """
    table, kinds = parse_part(text, "--search"), plugins.registry().parts["optimizer"]
    searches = sorted(kind for kind, declared in kinds.items() if "search" in declared.provides)
    if (kind := table["kind"]) not in searches:
        near = "" if kind in kinds else nearest(kind, searches)
        what = f"'{kind}' trains and is no search" if kind in kinds else f"there is no search '{kind}'"
        hint = f"; did you mean '{near}'?" if near else ""
        raise UsageError(f"--search {text}: {what}; searches: {', '.join(searches) or 'none is installed'}{hint}")
    return table


def parse_samplers(texts: Sequence[str]) -> dict[str, Chosen]:
    """Validated samplers, named by kind and network evaluations: "ddim-15"."""
    samplers: dict[str, Chosen] = {}
    for text in texts:
        chosen = parse_sampler(parse_part(text, "--sampler"), "--sampler")
        assert isinstance(chosen.config, SamplerConfig)
        name = f"{chosen.kind}-{chosen.config.evaluations()}"
        same = sum(other == name or other.startswith(f"{name}-v") for other in samplers)
        samplers[f"{name}-v{same + 1}" if same else name] = chosen
    return samplers
