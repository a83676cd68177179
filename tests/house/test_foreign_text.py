"""Names, paths and prompts of others on the terminal, in logs and on pages: seen, and without effect."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.cli.running import quiet_libraries

PROMPT = "a [/] [bold]red :smile: \x1b[31mcube\x1b[0m <script>alert(1)</script> \u202e"
REWARD = "redness [/x] :cat:"


@pytest.fixture
def command(toy_registry, monkeypatch):
    """A command's output, both streams."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output
        assert "\u202e" not in done.output
        return re.sub(r"\s+", " ", done.output)

    return call


def test_markup_and_escapes_are_shown_by_every_command(toy_spec, tmp_path, command):
    (tmp_path / "hostile.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{PROMPT} {number}"}) + "\n" for number in range(2)), encoding="utf-8"
    )
    spec = toy_spec(
        run={"steps": 1, "out": str(tmp_path / "[green]runs [" / "]")},
        reward=[{"kind": "toy-redness", "name": REWARD}],
        prompts={"file": "hostile.jsonl", "per_step": 2},
        evaluation={"limit": 9},
    )
    assert f"{REWARD} x 1" in command("validate", spec)
    told = command("run", spec)
    assert REWARD in told
    run = tmp_path / "[green]runs [" / "]" / "spec"
    assert f"{run}/report.html the run on one page" in told
    assert f"{run} is finished" in command("resume", run)
    assert REWARD in command("eval", run)
    other = shutil.copytree(run, tmp_path / "[a]")
    told = command("compare", run, other)
    assert REWARD in told
    assert "[a]" in told
    assert str(run) in command("report", run)
    assert str(tmp_path / "[blue]") in command("sample", spec, "--out", tmp_path / "[blue]")
    scored = command("score", tmp_path / "[blue]", "--reward", f'toy-redness={{name = "{REWARD}"}}')
    assert REWARD in scored

    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    assert "\x1b" not in card


def test_a_warning_shows_what_a_prompt_holds(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    quiet_libraries()
    logging.getLogger("t2ialign.any").warning("prompt %s", PROMPT)
    told = capsys.readouterr().err
    assert "\\x1b[31mcube" in told
    assert "\x1b" not in told
