"""The live display where people sit: narrow terminals, slow steps."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings

import pytest
from rich.console import Console

from t2ialign.run import display as displays
from t2ialign.run import runner
from t2ialign.run.chatter import Chatter
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage import embeds

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
        bar.rest = 100.0  # evaluation and export
        bar.advance(1)
        assert bar._progress.tasks[0].fields["eta"] == "32:46"


def test_the_eta_of_the_steps_counts_the_end_of_the_run(toy_spec, monkeypatch):
    """By what an image took: four steps, 5 prompts of two images drawn as base and tuned, and the export's check."""
    rests, advance = [], displays.Bar.advance

    def watched(self, count=1, note=""):
        rests.extend([self.rest] if self.title == "step" else [])
        advance(self, count, note)

    monkeypatch.setattr(displays.Bar, "advance", watched)
    spec = specs.load(toy_spec(evaluation={"images_per_prompt": 2}, samples={"count": 2}))
    monkeypatch.setattr(runner.time, "monotonic", iter(range(10**6)).__next__)  # whatever is timed takes whole seconds
    runner.start(spec, Display(quiet=True))
    assert len(rests) == 4
    assert min(rests) >= (2 * 5 * 2 + 4 * 4) * 0.5  # a grid of two images took one second or more


def screen_of(width: int, show) -> list[str]:
    """What a terminal of some width shows in the end; ``show`` gets a console on it."""
    pyte = pytest.importorskip("pyte")
    written = io.StringIO()
    show(Console(file=written, force_terminal=True, width=width, height=24))
    screen = pyte.Screen(width, 24)
    pyte.Stream(screen).feed(written.getvalue().replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_shows_one_bar_with_its_numbers_below_and_what_was_said_above(width):
    def show(console):
        display = Display(console)
        display.say("run directory: runs/mine")
        with display.bar("step", 24) as bar:
            for _ in range(7):
                bar.advance(1, NOTE)
                bar._progress.refresh()
            display.say("drift after step 7")

    shown = screen_of(width, show)
    assert shown[0] == "run directory: runs/mine"
    assert shown[1] == "drift after step 7"
    assert [line for line in shown if line.startswith("step ")] == [shown[2]]
    assert "7/24" in shown[2]
    assert "eta" in shown[2]
    assert " ".join(shown[3:]).split() == NOTE.split()


@pytest.mark.parametrize("setting", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm-256color"}])
def test_dumb_terminals_get_lines_and_no_color_means_none(setting, monkeypatch):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    written = io.StringIO()
    with Display(Console(file=written, force_terminal=True, width=80)).bar("step", 2) as bar:
        bar.advance(1, "clip 1.5")
        bar.advance(1, "clip 1.6")
    if "NO_COLOR" in setting:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9](;|m)", written.getvalue())
    else:
        assert "\x1b" not in written.getvalue()
        assert [line.split("  eta")[0] for line in written.getvalue().splitlines()] == ["step 1/2", "step 2/2"]


def test_where_there_is_no_terminal_a_line_comes_every_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    with Display(Console(file=written, width=200)).bar("step", 100) as bar:
        for _ in range(100):
            now[0] += 7
            bar.advance(1)
    steps = [int(line.split()[1].split("/")[0]) for line in written.getvalue().splitlines()]
    assert steps == [1, 10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]


def test_what_libraries_say_is_in_the_log_alone_and_what_others_say_is_on_both(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    chatter = Chatter()
    with chatter.collected(tmp_path / "second.txt"):
        display = Display(quiet=False, chatter=chatter)
        display.say("reading spec.toml")
        print("a library's bar", file=sys.stderr)
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        with display.kept_in(tmp_path / "log.txt"):
            logging.getLogger("urllib3.pool").warning("no kernels")
            logging.getLogger("my_rewards.mine").warning("a blank image")
            display.say("step 1")
    assert sys.stderr is terminal
    shown = ["reading spec.toml", "a blank image", "step 1"]
    assert all(text in terminal.getvalue() for text in shown)
    kept = ["a library's bar", "deprecated", "no kernels"]
    assert not any(text in terminal.getvalue() for text in kept)
    for file in ("log.txt", "second.txt"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert all(one in text for one in (*shown, *kept)), file


def test_prompts_that_are_encoded_have_a_bar():
    written = io.StringIO()
    display = Display(Console(file=written, width=100))
    with display.encoding():
        for done in range(1, 4):
            for watch in embeds.watchers:
                watch(done, 3)
    assert embeds.watchers == []
    assert [line.split("  eta")[0] for line in written.getvalue().splitlines()] == ["encoding 1/3", "encoding 3/3"]
