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
from t2ialign.spec import checkpoints
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


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; in seconds."""
    now = [1000.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    return now


def shares(bar, clock, calls, seconds, each=8):
    """A unit of ``calls`` network calls, ``each`` at a time and equally far apart; what the bar says after each."""
    said = []
    with bar.unit(64, 64) as tell:
        for _ in range(calls // each):
            clock[0] += seconds * each / calls
            tell(each)
            said.append(bar._progress.tasks[0].fields["inside"])
    bar.advance(1)
    return said


def test_a_slow_step_shows_its_images_their_pace_and_an_eta_of_its_own(clock):
    with Display(Console(file=io.StringIO(), force_terminal=True, width=80)).bar("step", 9) as bar:
        assert shares(bar, clock, 64, 4.0) == [""] * 8  # quick steps show nothing
        assert shares(bar, clock, 64, 64.0)[1] == "16/64 images  1 images/s  eta 0:48"
        assert bar._progress.tasks[0].fields["inside"] == ""  # between steps there is nothing to show
        longer = shares(bar, clock, 96, 96.0)
        assert longer[7:9] == ["64/64 images  1 images/s  eta 0:00", "72 network calls"]
        assert shares(bar, clock, 96, 96.0)[0] == "8/96 network calls  0.667 images/s  eta 1:28"  # as many as before


def test_the_eta_of_a_step_follows_its_latest_pace(clock):
    """Half at one image a second, then at four: the mean over all would say 1.07 images a second after the change."""
    with Display(Console(file=io.StringIO(), force_terminal=True, width=80)).bar("step", 9) as bar:
        with bar.unit(400, 400) as tell:
            for seconds in [1.0] * 200 + [0.25] * 120:
                clock[0] += seconds
                tell(1)
        done, pace = re.match(r"(\d+)/400 images  ([\d.]+) images/s", bar._progress.tasks[0].fields["inside"]).groups()
    assert done == "320"
    assert 2.5 < float(pace) < 4


@pytest.mark.parametrize(("seconds", "lines"), [(50, 0), (200, 2)])
def test_a_step_of_more_than_a_minute_has_a_line_a_minute_where_there_is_no_terminal(clock, seconds, lines):
    written = io.StringIO()
    with Display(Console(file=written, width=200)).bar("step", 3) as bar:
        shares(bar, clock, 64, seconds)
    said = [line for line in written.getvalue().splitlines() if "under way" in line]
    assert len(said) == lines
    assert all(re.match(r"step 1/3 is under way: \d+/64 images  0.32 images/s  eta \d:\d\d$", line) for line in said)


def test_a_step_of_a_run_tells_of_all_its_images(toy_spec, tmp_path, monkeypatch):
    counts, add = [], displays.Pace.add
    monkeypatch.setattr(displays.Pace, "add", lambda self, count, now: (counts.append(count), add(self, count, now)))
    spec = specs.load(toy_spec(run={"steps": 2, "out": str(tmp_path / "runs"), "micro_batch": 2}))
    runner.start(spec, Display(quiet=True))
    assert sum(counts) == 2 * 3 * spec.optimizer_config.plan(spec).images_per_step  # of three candidates


class Hub:
    """What stands for the hub's client: bars for files and for bytes, of sizes that come one after the other."""

    def __init__(self, folder, sizes):
        self.folder, self.sizes = folder, sizes

    def snapshot_download(self, reference, revision=None, allow_patterns=(), tqdm_class=None):
        make = tqdm_class or (lambda *a, **k: None)
        network = make(total=0, unit="B", desc="Downloading bytes")
        disk = make(total=0, unit="B", desc="Reconstructing")
        with make(total=len(self.sizes), desc="Fetching files") as files:
            for size in self.sizes:
                for bar in (network, disk):
                    bar.total += size
                    bar.refresh()
                for _ in range(4):
                    network.update(size // 4)
                    disk.update(size // 4)
                files.update(1)
        disk.set_description("Reconstruction complete")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    def of(*sizes):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(tmp_path, sizes).snapshot_download)
        monkeypatch.setattr(checkpoints, "commits", {})

    return of


def test_a_download_tells_its_megabytes_in_lines_where_there_is_no_terminal(hub, capfd):
    hub(3 * 2**20, 400 * 2**20, 2**19)
    written = io.StringIO()
    with Display(Console(file=written, width=200)).downloading():
        checkpoints.resolve("owner/model")
    assert checkpoints.watchers == []
    lines = written.getvalue().splitlines()
    assert lines[-1] == "downloading, MB 404/404  eta 0:00  owner/model"
    assert len(lines) <= 3
    assert capfd.readouterr().err == ""  # the client draws no bars of its own


def test_what_is_on_the_disk_already_has_no_bar(hub):
    hub()
    written = io.StringIO()
    with Display(Console(file=written, width=200)).downloading():
        checkpoints.resolve("owner/model")
    assert written.getvalue() == ""


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
            with bar.unit(1024, 1024) as tell:
                bar._slow = True
                tell(96)
                bar._progress.refresh()

    shown = screen_of(width, show)
    assert shown[0] == "run directory: runs/mine"
    assert shown[1] == "drift after step 7"
    assert [line for line in shown if line.startswith("step ")] == [shown[2]]
    assert "7/24" in shown[2]
    assert "eta" in shown[2]
    assert shown[3].startswith("  96/1,024 images ")
    assert " ".join(shown[4:]).split() == NOTE.split()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_shows_a_download_and_of_what(width, hub):
    hub(3 * 2**20, 400 * 2**20)

    def show(console):
        with Display(console).downloading():
            checkpoints.resolve("owner/a-model-of-some-size")

    shown = screen_of(width, show)
    assert shown[0].startswith("downloading, MB ")
    assert "403/403" in shown[0]
    assert shown[1:] == ["  owner/a-model-of-some-size"]


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
