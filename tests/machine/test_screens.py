"""What a person sees of ``run`` from Enter to the last line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from worlds import WORLD


@pytest.mark.slow
def test_the_first_line_comes_at_once_and_the_last_ones_say_what_it_took_and_what_is_next(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(WORLD.replace("OUT", str(tmp_path / "runs")))
    words = ["run", str(spec), "--set", "evaluation.limit=2", "--set", "evaluation.every=0"]
    environment = {**os.environ, "COLUMNS": "100"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "t2ialign", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    first = process.stderr.readline()
    early = time.monotonic() - started
    out, rest = process.communicate()
    whole = time.monotonic() - started
    assert process.returncode == 0, rest
    assert first == f"reading {spec}\n"
    assert early < max(1.0, whole / 4)  # a busy machine takes its time for everything
    run = tmp_path / "runs" / "spec"
    assert re.search(r"took \d+ (s|min \d+ s), peak memory [\d,]+ MB", out)
    assert "report.html" in out
    assert f"next: t2ialign sample {run}/spec.toml --lora {run}/export -p" in out
    log = (run / "log.txt").read_text(encoding="utf-8")
    for line in (first, "loading libraries", "writing the export", "step 1/1"):
        assert line.strip() in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_quiet_shows_nothing_and_keeps_the_log(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(WORLD.replace("OUT", str(tmp_path / "runs")))
    words = ["run", str(spec), "--quiet", "--log-file", str(tmp_path / "mine.txt"), "--set", "evaluation.limit=2"]
    done = subprocess.run([sys.executable, "-m", "t2ialign", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "step 1/1" in (tmp_path / "runs" / "spec" / "log.txt").read_text(encoding="utf-8")
    assert "step 1/1" in (tmp_path / "mine.txt").read_text(encoding="utf-8")
