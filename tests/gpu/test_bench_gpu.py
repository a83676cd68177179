"""The bench of all methods at real sizes runs, with its small models: the same code that a GPU runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import bench_gpu

    return bench_gpu


def test_each_row_has_its_step_and_its_limit(bench, monkeypatch, tmp_path, capsys):
    rows = ["reno", "ppo-flux", "infinity-2b"]
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--rows", *rows, "--json", str(out)])
    bench.main()
    found = {line["row"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert list(found) == rows
    for line in found.values():
        assert line["step"] > 0
        assert line["bare"] > 0
    assert found["reno"]["rows"] == 2
    assert found["reno"]["bare_backward"] > 0
    # Two intervals of four images: one call of all, then one with both probes.
    assert found["ppo-flux"]["rows"] == 2 * (1 + 2) * found["ppo-flux"]["images"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_a_row_that_does_not_fit_is_said_and_the_next_one_runs(bench, monkeypatch, capsys):
    def too_large(*arguments):
        raise MemoryError

    monkeypatch.setattr(bench, "measure", too_large)
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--rows", "reno", "dav"])
    bench.main()
    assert capsys.readouterr().out.count("out of memory") == 2


def test_a_row_that_fails_does_not_keep_the_next_one_from_running(bench, monkeypatch, capsys):
    def broken(*arguments):
        raise ValueError("no such kernel")

    monkeypatch.setattr(bench, "measure", broken)
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--rows", "reno", "dav"])
    with pytest.raises(SystemExit, match="failed: reno, dav"):
        bench.main()
    told = capsys.readouterr()
    assert told.out.count("failed: ValueError") == 2
    assert "no such kernel" in told.err


def test_no_row_starts_after_the_time(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--rows", "reno", "--seconds", "-1"])
    bench.main()
    assert "not started: the time was up" in capsys.readouterr().out


def test_every_configuration_of_a_row_is_here(bench):
    for row in bench.ROWS.values():
        assert (bench.ROOT / "specs" / f"{row.spec}.toml").is_file()
        assert row.folder is None or (bench.ROOT / "tests/released" / row.folder / "model_index.json").is_file()
