"""A bench as a user meets it: images as scorers read them, tables, going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import t2ialign
from t2ialign.bench import results, variants
from t2ialign.bench.bench import Bench
from t2ialign.bench.folder import BenchFolder
from t2ialign.bench.suites import SUITES, open_suite
from t2ialign.cli import app
from t2ialign.cli.studies.bench import scoring
from t2ialign.errors import UsageError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import installed

FILES = Path(__file__).parents[1] / "golden" / "suites"
QUIET = Display(quiet=True)
MULTI = {"backend": {"kind": "toy-flow", "checkpoint": "some/model"}, "sampler": {"kind": "toy-steps", "steps": 2}}


def bench(spec: Path, out: Path, word: str, *sources: str, limit=None, images=None, **options) -> Bench:
    suited = open_suite(word, options.pop("prompts", None), None, images)
    found = variants.plan([str(spec), *sources], [], options.pop("samplers", {}), options.pop("more", True))
    rewards = scoring(found[0].spec, (), options.pop("rewards", []))
    first = options.pop("seed", suited.suite.first_seed)
    return Bench(out, suited, suited.items(first, limit), found, rewards, first, options.pop("batch", None))


def drawn(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "drawn.0.jsonl").read_text().splitlines()]


def test_geneval_folders_hold_the_suites_own_lines_four_images_and_their_texts(toy_spec, tmp_path):
    source = FILES / "geneval" / "evaluation_metadata.jsonl"
    out = tmp_path / "out"
    bench(toy_spec(), out, "geneval", prompts=str(source)).run(QUIET)
    lines = source.read_text().splitlines()
    folders = sorted((out / "images" / "base").iterdir())
    assert [folder.name for folder in folders] == [f"{index:05d}" for index in range(len(lines))]
    for folder, line in zip(folders, lines, strict=True):
        assert (folder / "metadata.jsonl").read_text() == line + "\n"
        assert sorted(file.name for file in folder.iterdir()) == ["metadata.jsonl", "samples"]
        samples = sorted((folder / "samples").iterdir())
        assert [file.name for file in samples] == ["00000.png", "00001.png", "00002.png", "00003.png"]
        for seed, file in enumerate(samples):
            with Image.open(file) as picture:
                assert picture.text == {"prompt": json.loads(line)["prompt"], "seed": str(seed)}


def test_compbench_numbers_run_on_and_nothing_else_lies_beside_the_images(toy_spec, tmp_path):
    out = tmp_path / "out"
    bench(toy_spec(), out, "t2i-compbench", prompts=str(FILES / "compbench")).run(QUIET)
    assert sorted(folder.name for folder in (out / "images" / "base").iterdir()) == [
        "color_val", "non_spatial_val", "numeracy_val",
    ]  # fmt: skip
    prompts = (FILES / "compbench" / "color_val.txt").read_text().split("\n")
    files = sorted((out / "images" / "base" / "color_val" / "samples").iterdir(), key=lambda f: int(f.stem[-6:]))
    assert [int(file.name.split("_")[-1].split(".")[0]) for file in files] == list(range(10 * len(prompts)))
    assert [file.name.split("_")[0] for file in files] == [text.strip() for text in prompts for _ in range(10)]
    seeds = [line["seed"] for line in drawn(out) if line["variant"] == "base"]
    assert seeds[:10] == list(range(42, 52))
    assert seeds[10:20] == seeds[:10]
    assert set(json.loads((out / "summary.json").read_text())["categories"]) == {"color", "non_spatial", "numeracy"}


def test_hpsv2_styles_are_the_only_entries_and_hold_jpegs(toy_spec, tmp_path):
    out = tmp_path / "out"
    bench(toy_spec(), out, "hpsv2", prompts=str(FILES / "hpsv2")).run(QUIET)
    (style,) = (out / "images" / "base").iterdir()
    names = sorted(file.name for file in style.iterdir())
    assert style.name == "concept-art"
    assert names == [f"{index:05d}.jpg" for index in range(6)]
    with Image.open(style / names[0]) as picture:
        assert picture.format == "JPEG"


def test_parti_names_are_what_hyperscalees_reads_and_both_divisions_are_told(toy_spec, tmp_path):
    out = tmp_path / "out"
    bench(toy_spec(), out, "parti", prompts=str(FILES / "parti" / "PartiPrompts.tsv")).run(QUIET)
    names = sorted(file.name for file in (out / "images" / "base").iterdir())
    assert [int(name.split("_")[0]) for name in names] == list(range(8))
    assert all(re.fullmatch(r"\d{4}_[\w]{1,80}\.png", name) for name in names)
    assert [line["seed"] for line in drawn(out) if line["variant"] == "base"] == list(range(8))
    found = json.loads((out / "summary.json").read_text())["categories"]
    assert {name.split(":")[0] for name in found} == {"Category", "Challenge"}


def test_the_base_with_more_evaluations_is_a_variant_on_the_same_seeds_with_its_cost(toy_spec, tmp_path):
    run = runner.start(specs.load(toy_spec(**MULTI)), QUIET)
    out = tmp_path / "out"
    lora = run.path / "export" / "pytorch_lora_weights.safetensors"
    summary = bench(run.path, out, str(tmp_path / "prompts.txt"), str(lora)).run(QUIET)
    assert list(summary["variants"]) == ["base", "base-toy-steps-4", "spec", "export"]
    assert [cost["evaluations"] for cost in summary["cost"].values()] == [2, 4, 2, 2]
    assert all(cost["seconds"] > 0 for cost in summary["cost"].values())
    by_variant = {}
    for line in drawn(out):
        by_variant.setdefault(line["variant"], []).append((line["file"], line["seed"]))
    assert len({tuple(sorted(found)) for found in by_variant.values()}) == 1

    def pixels(variant: str) -> list[bytes]:
        return [Image.open(file).tobytes() for file in sorted((out / "images" / variant).iterdir())]

    assert pixels("spec") == pixels("export") != pixels("base")  # a run delivers what its file holds
    assert pixels("base") != pixels("base-toy-steps-4")
    page = (out / "report.html").read_text()
    assert "network evaluations of an image" in page
    assert "<circle" in page
    assert "http" not in page.replace("http-equiv", "")
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["variant"] for row in rows] == list(summary["variants"])
    assert float(rows[2]["difference"]) == pytest.approx(float(rows[2]["mean"]) - float(rows[0]["mean"]), abs=1e-6)
    assert "| base-toy-steps-4 | 4 |" in (out / "table.md").read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child of its own")
@pytest.mark.parametrize("moment", ["saved", "written"])
def test_a_killed_bench_goes_on_and_draws_at_most_one_image_again(toy_spec, tmp_path, monkeypatch, moment):
    from t2ialign.bench import draw

    out, spec = tmp_path / "out", toy_spec()
    asked = bench(spec, out, str(tmp_path / "prompts.txt"), images=3, batch=1)
    whole = asked.run(QUIET)
    reference = {file.name: file.read_bytes() for file in (out / "images" / "base").iterdir()}
    out = tmp_path / "killed"
    again = bench(spec, out, str(tmp_path / "prompts.txt"), images=3, batch=1)
    if (child := os.fork()) == 0:
        save, calls = draw.save, []

        def dying(*arguments):
            calls.append(1)
            if moment == "written":
                save(*arguments)
            if len(calls) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "saved":
                save(*arguments)

        draw.save = dying
        again.run(QUIET)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with (out / "drawn.0.jsonl").open("a") as stream:
        stream.write('{"variant": "base", "fi')  # what a kill in the middle of a write leaves
    before = {file.name: file.stat().st_mtime_ns for file in (out / "images" / "base").iterdir()}
    assert len(before) == 7 + (moment == "written")
    resumed = again.run(QUIET)
    after = {file.name: file.stat().st_mtime_ns for file in (out / "images" / "base").iterdir()}
    assert sum(after[name] != time for name, time in before.items()) <= 1
    assert {file.name: file.read_bytes() for file in (out / "images" / "base").iterdir()} == reference
    assert resumed["variants"] == whole["variants"]
    assert sum(line["variant"] == "base" for line in drawn(out)) == len(reference)


def test_a_finished_bench_draws_nothing_takes_another_variant_and_refuses_other_prompts(toy_spec, tmp_path):
    spec, out, prompts = toy_spec(**MULTI), tmp_path / "out", str(tmp_path / "prompts.txt")
    bench(spec, out, prompts, more=False).run(QUIET)
    before = len(drawn(out))
    summary = bench(spec, out, prompts, rewards=["toy-darkness"]).run(QUIET)
    assert len(drawn(out)) == 2 * before
    assert set(summary["variants"]["base"]) == {"toy-redness", "toy-darkness"}
    with pytest.raises(UsageError, match="seed"):
        bench(spec, out, prompts, seed=7).run(QUIET)
    other = toy_spec(**{**MULTI, "sampler": {"kind": "toy-steps", "steps": 3}})
    with pytest.raises(UsageError, match="variant 'base' with sampler"):
        bench(other, out, prompts).run(QUIET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no bench"):
        bench(spec, tmp_path / "mine", prompts).run(QUIET)


def test_wrong_words_are_told_with_what_is_allowed(toy_spec, tmp_path):
    with pytest.raises(UsageError, match=r"did you mean 'geneval'.*parti"):
        open_suite("genval", None, None, None)
    with pytest.raises(UsageError, match=r"needs --prompts: prompts/evaluation_metadata.jsonl"):
        open_suite("geneval", None, None, None)
    with pytest.raises(UsageError, match="first source"):
        variants.plan(["some/lora"], [], {}, True)
    with pytest.raises(UsageError, match="is no spec, no run directory, and as a LoRA"):
        variants.plan([str(toy_spec()), "nothing.bin"], [], {}, True)


class Siblings(t2ialign.Reward):
    """Needs all images of a prompt."""

    per_prompt = True

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


class SiblingsPlugin:
    @t2ialign.hookimpl
    def t2ialign_rewards(self, register):
        register("siblings", Siblings)


def test_a_reward_that_a_bench_cannot_use_is_named(toy_spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with installed(SiblingsPlugin()):
        rewards = [{"kind": "toy-redness"}, {"kind": "siblings", "weight": 0.0}]
        spec = toy_spec(reward=rewards, evaluation={"images_per_prompt": 2})
        done = CliRunner().invoke(app, ["bench", str(spec.parent / "prompts.txt"), str(spec), "--limit", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert "note: without siblings: they judge an image beside others" in done.stderr
    header = (tmp_path / "bench" / "prompts" / "table.md").read_text().splitlines()[0]
    assert "toy-redness" in header
    assert "siblings" not in header


def test_a_limit_is_spread_and_keeps_the_numbers_of_the_whole_suite():
    suited = open_suite("geneval", str(FILES / "geneval" / "evaluation_metadata.jsonl"), None, 1)
    items = suited.items(limit=3)
    assert [item.index for item in items] == [0, 2, 4]
    assert items[1].file == "00002/samples/00000.png"


def test_the_headline_of_geneval_is_the_plain_mean_of_its_tags(tmp_path):
    suited = open_suite("geneval", str(FILES / "geneval" / "evaluation_metadata.jsonl"), None, 1)
    items = suited.items()[:3]
    folder = BenchFolder(tmp_path)
    (tmp_path / "drawn.0.jsonl").write_text("")
    scores = zip(items, (1.0, 0.0, 1.0), strict=True)
    texts = (json.dumps({"variant": "base", "file": item.file, "scores": {"r": s}}) for item, s in scores)
    (tmp_path / "scores.0.jsonl").write_text("\n".join(texts) + "\n")
    summary = results.summarise(folder, suited, items, ["base"])
    tags = {tag: part["variants"]["base"]["r"]["mean"] for tag, part in summary["categories"].items()}
    assert len(tags) > 1
    assert summary["mean_over_categories"]["base"]["r"] == pytest.approx(sum(tags.values()) / len(tags))


def test_every_suite_says_what_it_needs():
    for suite in SUITES.values():
        assert suite.brings
        assert suite.images_per_prompt >= 1
