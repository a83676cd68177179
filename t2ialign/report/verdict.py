"""What a run comes to in one line, and how to use and repeat it. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ialign.evaluation import comparison


def verdict(summary: Mapping[str, Any] | None, timing: Sequence[Mapping[str, Any]], duration: str) -> str:
    """The optimised rewards on the evaluation's prompts, the held-out ones, and what it took."""
    if summary is None:
        return ""
    rows = [row for row in comparison.rows(dict(summary)) if row.variant == "tuned"]
    told = [_told(row) for row in rows if not row.held_out]
    held = [_told(row) for row in rows if row.held_out]
    text = "; ".join(told) + (f". Held out: {'; '.join(held)}" if held else "")
    text += f". On {summary['prompts']} prompts that base and tuned share"
    peak = max((line["peak_memory_mb"] for line in timing if line.get("peak_memory_mb") is not None), default=None)
    cost = [f"{duration} in steps"] if timing else []
    cost += [f"peak memory {peak:,.0f} MB"] if peak is not None else []
    return text + (f"; {', '.join(cost)}" if cost else "") + "."


def _told(row: comparison.Row) -> str:
    words = {"up": "rose", "down": "fell", "unclear": "did not change beyond doubt", None: "has no interval"}
    change = f" by {row.measured.lstrip('+-')}" if row.direction in ("up", "down") else f" ({row.measured})"
    return f"{row.reward} {words[row.direction]}{change}"


def constants(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Series of one value at several steps, which need no chart; rewards and evaluations always have theirs."""
    values: dict[str, list[float | None]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not name.startswith(("reward/", "evaluation/")):
                values.setdefault(name, []).append(value)
    known = {name: found[0] for name, found in values.items() if len(found) > 1 and len(set(found)) == 1}
    return {name: value for name, value in known.items() if value is not None and math.isfinite(value)}


def use_it(export: Path) -> str:
    """The code of the export's card; empty where it has none."""
    card = export / "README.md"
    if not card.is_file():
        return ""
    found = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    return found[1].strip() if found else ""
