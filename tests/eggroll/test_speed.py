"""What the benchmark promises, measured: batching pays even on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_es.py"


@pytest.mark.slow
def test_a_generation_costs_at_most_half_the_bare_forwards_and_a_third_of_the_dense_loop():
    output = subprocess.run(
        [sys.executable, str(TOOL), "--json", "--rounds", "3"], check=True, capture_output=True, text=True
    )
    seconds = json.loads(output.stdout)
    assert seconds["EGGROLL"] <= 0.5 * seconds["bare forwards"]
    assert seconds["EGGROLL"] <= seconds["dense loop"] / 3
