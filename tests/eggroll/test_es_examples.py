"""The examples do what their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def numbers(name: str, *arguments: str) -> list[float]:
    """Run an example; the last number of every line that it prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(re.findall(r"-?[\d.]+", line)[-1]) for line in output.splitlines() if re.search(r"\d", line)]


def test_the_tour_fits_the_sine():
    first, *_, adam, _, _ = numbers("es_tour.py")
    assert adam < 0.05 < first


def test_hard_switches_learn_the_moons():
    before, *_, after = numbers("es_black_box.py")
    assert before < 0.7
    assert after > 0.95


def test_evolution_repairs_the_rounded_network():
    pytest.importorskip("sklearn")
    exact, rounded, evolved = numbers("es_quantised.py")
    assert rounded < evolved - 0.02
    assert evolved > exact - 0.02


def test_eggroll_reads_digits(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    eggroll, open_es, sgd = numbers("es_digits.py", "--steps", "170", "--plot", str(tmp_path / "digits.png"))
    assert eggroll >= 0.95
    assert open_es >= 0.95
    assert sgd >= 0.95
    assert (tmp_path / "digits.png").stat().st_size > 10_000
