"""The live display where people sit: narrow terminals, slow steps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from t2ialign.run import display as displays
from t2ialign.run.display import Display

NOTE = "clip 1.654↑  shapes-exact 0.3568↑  shapes-graded 0.4829↑  training: clip 1.2  76 images/s  641 MB"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_step_bar_and_times_keep_their_place_and_nothing_is_cut(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with Display(console).bar("step", 24) as bar:
        bar.advance(7, NOTE)
        lines = console.render_lines(bar._progress.get_renderable(), console.options, pad=False)
        shown = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert shown[0].startswith("step ")
    assert "7/24" in shown[0]
    assert "29%" in shown[0]
    assert "eta 0:0" in shown[0]
    assert "…" not in "".join(shown)
    assert " ".join(shown[1:]).split() == NOTE.split()
    assert all(len(line) <= width for line in shown)


def test_the_eta_is_there_however_slow_the_steps_are(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with Display(Console(file=io.StringIO(), force_terminal=True, width=80)).bar("step", 10) as bar:
        for _ in range(2):
            now[0] += 400
            bar.advance(1)
        assert bar._progress.tasks[0].fields["eta"] == "53:20"
