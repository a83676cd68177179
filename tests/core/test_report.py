"""The page about a run, and runs side by side: what they show, from directories whole and in parts."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from t2ialign.report import changes, curves, verdict
from t2ialign.report import page as report
from t2ialign.report.pictures import LARGE, Picture, tiles
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage import files, images
from t2ialign.storage.run_directory import RunDir

VOID = {"meta", "img", "input", "br"}
EVIL = '<script>alert("x")</script> & \'"><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Balanced tags, or an AssertionError; and what the page contains."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if (
            tag not in VOID
            and not (self.open and self.open[-1] == "svg" and tag in ("path", "circle"))
            and not (tag == "path" and self.open[-1] == "g")
        ):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def curve_names(self) -> list[str]:
        return [svg["aria-label"].split(" at ")[0] for svg in self.attributes("svg") if svg["class"] == "curve"]

    def readings(self) -> list[list[list[float | None]]]:
        """Of every curve."""
        return [json.loads(group["data-readings"]) for group in self.attributes("g") if "data-readings" in group]


@pytest.fixture
def run(toy_spec: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A test's own copy of one finished toy run: two rewards, one held out, and a grid after every step."""
    original = tmp_path_factory.getbasetemp() / "reported" / "spec"
    if not original.exists():
        path = toy_spec(
            run={"steps": 4, "out": str(original.parent)},
            reward=[{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}],
            evaluation={"every": 2, "images_per_prompt": 2},
            samples={"every": 1, "count": 3},
        )
        runner.start(specs.load(path), Display(quiet=True))
    return RunDir(Path(shutil.copytree(original, tmp_path / "spec")))


def page(run: RunDir) -> Page:
    return Page(report.page(run))


def logged(run: RunDir) -> list[str]:
    """What has a curve: evaluations before training rewards before the rest; intervals belong to theirs."""
    names = dict.fromkeys(name for line in run.history() for name in line if name != "step")
    groups = ("evaluation", "reward")

    def place(name: str) -> int:
        group = name.partition("/")[0]
        return groups.index(group) if group in groups else len(groups)

    flat = verdict.constants(run.history())
    return sorted((name for name in names if not name.endswith("/ci95") and name not in flat), key=place)


def test_a_finished_run_has_a_page_with_everything(run):
    text = (run.path / "report.html").read_text()
    found = Page(text)
    assert "spec finished, 4 steps" in found.text
    for part in ("toy-search", "toy-model (some/model)", "toy-step", "toy-redness × 1, toy-darkness (held out)"):
        assert part in found.text
    paired = run.summary()["paired"]["tuned"]["toy-redness"]
    assert f"{paired['difference']:+.4f} ± {paired['se']:.4f}" in found.text
    assert "{:+.4f} to {:+.4f}".format(*paired["ci95"]) in found.text
    assert {"evaluation/toy-redness", "evaluation/toy-darkness", "evaluation/drift"} <= set(logged(run))
    flat = verdict.constants(run.timing())
    clocks = [name for name in ("seconds", "images_per_second", "peak_memory_mb") if name not in flat]
    assert found.curve_names() == [*logged(run), *clocks]
    alts = [image["alt"] for image in found.attributes("img")]
    assert all(alts)
    wanted = [f"Samples after step {i}: {prompt}" for i in range(5) for prompt in ("red", "blue", "white")]
    assert [alt for alt in alts if "step" in alt] == wanted
    assert "scale = 0.1" in found.text  # the resolved spec
    assert '"torch":' in found.text  # the environment


def test_the_page_loads_nothing(run):
    """No address in any attribute but inlined images, and a policy that would block the rest."""
    found = page(run)
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object")]
    ids = {f"#{attributes['id']}" for _, attributes in found.tags if "id" in attributes}
    assert {link["href"] for link in found.attributes("a")} == ids, "the contents lead to every section"
    for tag, attributes in found.tags:
        assert attributes.keys().isdisjoint(
            {"srcset", "action", "data", "poster"} | ({"href"} if tag != "a" else set())
        )
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = found.attributes("meta")[2]
    assert (policy["http-equiv"], policy["content"].split(";")[0]) == ("Content-Security-Policy", "default-src 'none'")
    assert "url(" not in report.page(run)


def test_text_of_others_stays_text(toy_spec):
    path = toy_spec(reward=[{"kind": "toy-redness", "name": EVIL}], evaluation={"every": 2})
    (path.parent / "prompts.txt").write_text(f"{EVIL}\ngreen\n")
    text = (runner.start(specs.load(path), Display(quiet=True)).path / "report.html").read_text()
    found = Page(text)
    assert Counter(tag for tag, _ in found.tags)["script"] == 1
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert EVIL in found.text
    assert any(EVIL in image["alt"] for image in found.attributes("img"))


def test_gains_and_losses_by_prompt_with_their_images(run):
    """Scores as they might be: one prompt lost, one image has no score, one changed within noise, the others gained."""
    pairs = [(1, -2), (1, -2.5), (0, 2.5), (0, 3.5), (0, 2), (None, 9), (0, 5), (0, 5), (3, 4)]
    scores = run.path / "evaluation" / "scores.jsonl"
    lines = files.read_json_lines(scores)
    for row, (base, tuned) in enumerate(pairs):
        lines[row]["base"]["toy-redness"], lines[row]["tuned"]["toy-redness"] = base, tuned
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines[:9]))
    found = changes.changes(run, "toy-redness")
    assert [(c.prompt, c.base, c.tuned) for c in found["gain"]] == [("black", 0, 5), ("green", 0, 3), ("blue", 0, 2)]
    assert [(c.prompt, c.base, c.tuned) for c in found["loss"]] == [("red", 1, -2.25)]
    assert [len(pictures) for pictures in found["gain"][2].pictures.values()] == [1, 1]
    original = (run.path / "evaluation" / "tuned" / "00000.png").read_bytes()
    shown = found["loss"][0].pictures["tuned"][0]
    assert shown.picture == Picture.read(run.path / "evaluation" / "tuned" / "00000.png")
    assert shown.scores == {"toy-redness": -2}
    assert len(original) < len(shown.picture.uri)
    shutil.rmtree(run.path / "evaluation" / "base")
    shutil.rmtree(run.path / "evaluation" / "tuned")
    assert "green 0 → 3 (+3)" in page(run).text


def test_missing_parts_are_left_out(run):
    for folder in ("evaluation", "export", "samples"):
        shutil.rmtree(run.path / folder)
    for file in ("environment.json", "timing.jsonl"):
        (run.path / file).unlink()
    run.rewind(3)
    found = page(run)
    assert "spec step 3 of 4" in found.text
    assert "Not evaluated yet." in found.text
    assert not found.attributes("img")
    assert found.curve_names() == logged(run)
    run.metrics_file.unlink()
    assert "step 0 of 4" in page(run).text
    assert not page(run).attributes("svg")


def test_the_state_is_told_where_the_plugins_of_the_run_are_not_installed(run):
    shutil.rmtree(run.path / "export")
    (run.path / "spec.toml").write_text((run.path / "spec.toml").read_text().replace("toy-search", "gone"))
    assert "spec step 4 " in page(run).text


@pytest.mark.parametrize("steps", [1, 2, 7, 3000])
def test_every_metric_has_a_curve_whatever_it_holds(run, steps):
    special = {
        "reward/none": [None] * steps,
        "reward/gaps": [None if step % 3 == 1 else step / 7 for step in range(steps)],
        "learn/constant": [613.0] * steps,
        "learn/zero": [0.0] * steps,
        "learn/huge": [(-1) ** step * 1e299 for step in range(steps)],
        "learn/infinite": [float("inf")] * steps,
        "alone": [1e-12 * step for step in range(steps)],
    }
    lines = [{"step": i + 1, **{name: values[i] for name, values in special.items()}} for i in range(steps)]
    lines[-1]["search/once"] = 1.5
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report.page(run)
    found = Page(text)
    flat, clocks = set(verdict.constants(run.history())), set(verdict.constants(run.timing()))
    assert flat == ({"learn/constant", "learn/zero"} if steps > 1 else set())
    assert set(found.curve_names()) >= {*special, "search/once"} - flat
    assert len(found.curve_names()) == len(special) + 1 + 3 - len(flat) - len(clocks)
    assert all(len(reading) == 4 for readings in found.readings() for reading in readings)
    drawn = [path["d"] for path in found.attributes("path") if path["class"] in ("raw", "mean")]
    assert not any("nan" in d or "inf" in d for d in drawn)
    assert len(text) < 1_500_000


def test_a_curve_shows_its_values_where_they_are():
    curve = curves.draw("reward/r", [(1, 0.0), (2, 10.0), (3, None), (4, 5.0)], last=4, logged=4)
    width = curves.WIDTH - curves.LEFT - curves.RIGHT
    readings = json.loads(curve.readings)
    assert [reading[0] for reading in readings] == [
        pytest.approx(curves.LEFT + width * i / 4, abs=0.1) for i in (1, 2, 3, 4)
    ]
    assert [reading[1:3] for reading in readings] == [[1, 0.0], [2, 10.0], [3, None], [4, 5.0]]
    first, second = (part.split("L") for part in curve.raw[1:].split("M"))
    heights = [float(point.split()[1].removesuffix("h0")) for point in [*first, *second]]
    assert len(first) == 2  # a gap after the second point
    assert heights[1] < heights[2] < heights[0]  # upwards is up
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=0.1)
    labels = {text: y for y, text in curve.y_ticks}
    assert labels["10"] == pytest.approx(heights[1], abs=0.1)
    assert labels["0"] == pytest.approx(heights[0], abs=0.1)


def test_the_running_mean_looks_both_ways_and_over_gaps():
    assert curves.running_mean([1.0, 2.0, 6.0, None, 4.0], 1) == [1.5, 3.0, 4.0, 5.0, 4.0]
    assert curves.running_mean([None, None, None, 3.0], 1) == [None, None, 3.0, 3.0]


def test_thinning_keeps_every_peak():
    values: list[float | None] = [0.0] * 10_000
    values[1234], values[1240], values[7777] = 5.0, -5.0, 9.0
    kept = curves.thin(values, 100)
    assert len(kept) <= 100
    assert {1234, 1240, 7777} <= set(kept)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 40, ["0", "10", "20", "30", "40"]),
        (0.18, 0.52, ["0.2", "0.3", "0.4", "0.5"]),
        (613.4, 616.8, ["614", "615", "616"]),
        (-1e-7, 1e-7, ["-1e-07", "-5e-08", "0", "5e-08", "1e-07"]),
        (0, 2.1e6, ["0", "5e+05", "1e+06", "1.5e+06", "2e+06"]),
    ],
)
def test_ticks_are_round_numbers(low, high, labels):
    assert [text for _, text in curves.ticks(low, high, 5)] == labels


def test_rare_values_are_dots_and_evaluations_show_the_base(run):
    text = report.page(run)
    redness = next(curve for curve in text.split("<figure>") if 'aria-label="evaluation/toy-redness' in curve)
    assert redness.split('class="dots" d="')[1].split('"')[0].count("h0") == 3, "steps 0, 2 and 4"
    assert redness.count('class="base"') == 1
    rare = [name for name in logged(run) if name.startswith(("evaluation/", "image/"))]
    assert text.count('class="dots"') == len(rare)


def test_large_images_are_shrunk_and_many_grids_thinned(run):
    shutil.rmtree(samples := run.path / "samples")
    samples.mkdir()
    large = Image.new("RGB", (8 * 300, 340))
    for step in range(0, 400, 10):
        images.save_png(large, samples / f"step-{step:06d}.png", {"prompts": "a\nb\nc"})
    grids = [image for image in page(run).attributes("img") if image["alt"].startswith("Samples")]
    assert len(grids) == report.GRIDS
    assert {(image["width"], image["height"]) for image in grids} == {(str(2400 * 192 // 340), "192")}
    steps = [int(image["alt"].split()[3].rstrip(":")) for image in grids]
    assert (steps[0], steps[-1]) == (0, 390)


def test_a_grid_is_cut_into_its_images_and_large_images_are_kept_large_enough_to_look_at(tmp_path):
    rows = torch.rand(3, 3, 8, 8).round()
    images.save_png(images.grid([rows]), tmp_path / "grid.png", {"prompts": "a\nb\nc"})
    found = tiles(tmp_path / "grid.png")
    assert [tile.prompts for tile in found] == [("a",), ("b",), ("c",)]
    for tile, image in zip(found, rows, strict=True):
        pixels = Image.open(io.BytesIO(base64.b64decode(tile.uri.partition(",")[2])))
        scale = pixels.width // 8
        assert pixels.getpixel((0, 0)) == images.to_pil(image).getpixel((0, 0))
        assert pixels.getpixel((8 * scale - 1, 8 * scale - 1)) == images.to_pil(image).getpixel((7, 7))
    Image.new("RGB", (1024, 768)).save(tmp_path / "large.png")
    large = Picture.large(tmp_path / "large.png")
    assert ((large.width, large.height), large.uri[:15]) == ((LARGE, LARGE * 3 // 4), "data:image/jpeg")


def test_lowest_mean_and_highest_are_one_band(run):
    lines = [{"step": i, "p/min": i - 1.0, "p/mean": float(i), "p/max": i + 2.0, "p/std": i % 2} for i in range(1, 9)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = page(run)
    assert [name for name in found.curve_names() if name.startswith("p/")] == ["p/mean", "p/std"]
    assert [step[1:] for step in found.readings()[0]] == [[i, i, None, i - 1, i + 2] for i in range(1, 9)]
    assert [path["class"] for path in found.attributes("path")].count("band") == 1
    assert "Shaded: from the lowest to the highest." in found.text
    assert "Dots: measured" not in found.text, "the legend has what the charts have"


def test_what_goes_one_way_is_not_smoothed_and_axes_say_what_they_count(run):
    falling = curves.draw("learning_rate", [(i, 1.0 / i) for i in range(1, 9)], last=8, logged=8)
    assert falling.mean == ""
    units = {name: curves.draw(name, [(1, 1.0)], 1, 1).unit for name in ("seconds", "peak_memory_mb", "reward/x")}
    assert units == {"seconds": "s", "peak_memory_mb": "MB", "reward/x": "score"}


def test_pairs_have_their_scores(run):
    line = json.loads((run.path / "evaluation" / "scores.jsonl").read_text().splitlines()[0])
    found = changes.pairs(run)
    assert [pair.prompt for pair in found] == list(dict.fromkeys(pair.prompt for pair in found))
    assert (found[0].base.scores, found[0].tuned.scores) == (line["base"], line["tuned"])
    scores = (line[variant]["toy-redness"] for variant in ("base", "tuned"))
    assert "toy-redness {:.4g} → {:.4g}".format(*scores) in page(run).text


LIGHT = """
import sys
from t2ialign.cli import main
try:
    main()
finally:
    assert not {"torch", "diffusers"} & set(sys.modules)
"""


def t2ialign(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIGHT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_the_page(run, tmp_path):
    whole = (run.path / "report.html").read_text()
    (run.path / "report.html").unlink()
    done = t2ialign("report", run.path)
    assert done.returncode == 0, done.stderr
    assert (run.path / "report.html").read_text() == whole
    assert t2ialign("report", run.path, "--out", tmp_path / "mine.html").returncode == 0
    assert (tmp_path / "mine.html").read_text() == whole
    done = t2ialign("report", run.path, "--out", tmp_path / "absent" / "mine.html")
    assert (done.returncode, "existing folder" in done.stderr) == (2, True)


@pytest.mark.slow
def test_runs_side_by_side(run, tmp_path):
    other = Path(shutil.copytree(run.path, tmp_path / "other"))
    done = t2ialign("compare", run.path, other)
    assert done.returncode == 0, done.stderr
    row = run.summary()["paired"]["tuned"]["toy-redness"]
    assert done.stdout.count(f"{row['difference']:+.4f} ± {row['se']:.4f}") == 2
    assert "all on the same prompts and seeds" in done.stdout
    scores = other / "evaluation" / "scores.jsonl"
    scores.write_text(scores.read_text().replace('"red"', '"crimson"'))
    found = json.loads(t2ialign("compare", run.path, other, "--json").stdout)
    assert found == {"shared": False, "runs": {str(run.path): run.summary(), str(other): run.summary()}}
    assert "NOT on the same prompts" in t2ialign("compare", run.path, other).stdout
    shutil.rmtree(other / "evaluation")
    done = t2ialign("compare", run.path, other)
    assert done.returncode == 2
    assert f"{other} has no evaluation yet" in done.stderr
    assert "at least two" in t2ialign("compare", run.path).stderr


def test_a_second_run_is_laid_over_the_first(run, tmp_path):
    other = RunDir(Path(shutil.copytree(run.path, tmp_path / "other")))
    lines = other.history()
    for line in lines:
        line |= {name: 2 * value for name, value in line.items() if name == "reward/toy-redness"}
    other.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = t2ialign("compare", run.path, other.path, "--out", tmp_path / "both.html")
    assert done.returncode == 0, done.stderr
    found = Page((tmp_path / "both.html").read_text())
    assert "All on the same prompts and seeds." in found.text
    series = [group for group in found.attributes("g") if group.get("data-name")]
    assert {group["data-name"] for group in series} == {"spec", "other"}
    charts = [svg for svg in found.attributes("svg") if svg["class"] == "curve"]
    redness = next(i for i, svg in enumerate(charts) if svg["aria-label"].startswith("reward/toy-redness"))
    top = max(value for _, _, value, *_ in found.readings()[2 * redness + 1])
    assert float(charts[redness]["data-high"]) > top, "both runs fit the axes"
    pictures = [image["alt"] for image in found.attributes("img")]
    assert pictures[:3] == [f"{name}: {changes.pairs(run)[0].prompt}" for name in ("base", "spec", "other")]
    done = t2ialign("compare", run.path, other.path, "--out", tmp_path / "absent" / "both.html")
    assert (done.returncode, "existing folder" in done.stderr) == (2, True)


def test_the_page_shows_categories_drift_intervals_and_what_was_left_out(toy_spec):
    path = toy_spec(
        run={"steps": 4, "out": str(toy_spec().parent / "runs"), "nonfinite": "drop"},
        reward=[{"kind": "toy-redness"}, {"kind": "toy-broken", "weight": 0.0}],
        prompts={"file": "kinds.jsonl", "per_step": 5, "images_per_prompt": 8},
        evaluation={"every": 2, "images_per_prompt": 2, "drift_threshold": 1e6},
    )
    kinds = {"red": "warm", "orange": "warm", "blue": "cold", "green": "cold", "white": "cold"}
    lines = [json.dumps({"prompt": prompt, "category": kind}) for prompt, kind in kinds.items()]
    (path.parent / "kinds.jsonl").write_text("\n".join(lines))
    run = runner.start(specs.load(path), Display(quiet=True))
    found, summary = page(run), run.summary()
    assert "left out for want of a score: toy-broken 2" in found.text
    assert "By category" in found.text
    warm = summary["categories"]["warm"]["paired"]["tuned"]["toy-redness"]
    assert (warm["prompts"], warm["images"]) == (2, 4)
    assert f"warm 2 {warm['base']:.4g} {warm['mean']:.4g} {warm['difference']:+.4f} ±" in found.text
    bars = [tag["style"] for name, tag in found.tags if name == "i"]
    assert len(bars) >= 3
    low, high = summary["paired"]["tuned"]["toy-redness"]["ci95"]
    share = 100 * (high - low) / (max(high, 0) - min(low, 0))
    assert f"width:{share:.1f}%" in bars[0]
    assert "No alarm, neither at the end nor in 2 evaluations along the run." in found.text
    assert "image/contrast" in found.text
    whiskers = report.page(run).split('aria-label="evaluation/toy-redness')[1].split("</svg>")[0].count("whisker")
    assert whiskers == 2, "after steps 2 and 4; the base has none"


def test_an_alarm_is_the_first_thing_that_its_panel_says(run):
    file = run.path / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["drift"] = [{"name": "toy-darkness", "difference": -1.0, "words": "toy-darkness -1 (-4.0 s.e.)"}]
    file.write_text(json.dumps(summary))
    lines = run.history()
    for line in lines:
        line |= {"evaluation/drift": int(line["step"] == 2)} if "evaluation/drift" in line else {}
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(run).text
    assert "Drift The last evaluation raised the alarm: toy-darkness -1 (-4.0 s.e.)." in text
    assert "Evaluations along the run raised it after step 2." in text


def test_the_dashed_line_is_the_base_on_the_images_of_the_curve(run):
    lines = run.history()
    lines[0]["evaluation/toy-redness"] = 5.0
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report.page(run).split('aria-label="evaluation/toy-redness')[1].split("</figure>")[0]
    base = text.split('class="base" d="M')[1].split("H")[0].split()[1]
    first = text.split('class="dots" d="M')[1].split("h0")[0].split()[1]
    assert base == first
