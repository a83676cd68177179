"""What a run says of its judges: explanations in the report, and rewards that do not repeat themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from judges.chat import answer
from PIL import Image
from services import serving

import t2ialign
import t2ialign_judges.plugin
from t2ialign import UsageError
from t2ialign.testing import run_spec


class Moody(t2ialign.Reward):
    """Another score at every look."""

    looks = 0

    def score(self, images, prompts):
        type(self).looks += 1
        return images.mean((1, 2, 3)) + 0.25 * (type(self).looks % 2)


@t2ialign.hookimpl
def t2ialign_rewards(register):
    register("moody", Moody)


MOODY = SimpleNamespace(t2ialign_rewards=t2ialign_rewards, __name__="moody")
STEADY = {"kind": "toy-redness", "deterministic": True}


def test_a_reward_that_does_not_repeat_itself_is_named_in_display_and_card(tmp_path, capsys):
    run = run_spec(tmp_path, MOODY, reward=[STEADY, {"kind": "moody", "weight": 0.0}])
    words = "reward 'moody' scores the same images otherwise the second time, by up to 0.25"
    assert run.remarks() == [words]
    assert f"Note: {words}." in (run.path / "export" / "README.md").read_text()


def test_it_is_refused_where_the_spec_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"reward 'moody' scores the same images .* deterministic = true refuses that"):
        run_spec(tmp_path, MOODY, reward=[STEADY, {"kind": "moody", "weight": 0.0, "deterministic": True}])
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("kind", ["vlm-judge", "vlm-pairwise"])
def test_explanations_are_kept_with_the_image_and_shown_in_the_report(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))
    with serving(answer) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        judge = {"kind": kind, "model": "m", "url": url, "name": "judge", "weight": 0.0}
        judge |= {"form": "number"} if kind == "vlm-judge" else {}
        run = run_spec(tmp_path, t2ialign_judges.plugin, reward=[{"kind": "toy-redness"}, judge])
    with Image.open(next((run.path / "evaluation" / "tuned").glob("*.png"))) as image:
        told = json.loads(image.info["explanations"])["judge"]
    page = (run.path / "report.html").read_text()
    assert f"judge: {told}" in page
    scores = run.summary()["variants"]
    assert all(0 <= scores[variant]["judge"]["mean"] <= 1 for variant in ("base", "tuned"))
    if kind == "vlm-pairwise":
        assert scores["base"]["judge"]["mean"] == 0.5
        assert "equal images" in page


def test_a_score_of_a_folder_tells_reasons(tmp_path):
    from t2ialign.evaluation.score import report, score_images
    from t2ialign_judges.config import OcrConfig
    from t2ialign_judges.ocr import Ocr

    path = tmp_path / "0.png"
    Image.fromarray((torch.ones(64, 64, 3) * 255).byte().numpy()).save(path)
    result = score_images([path], ['a sign "HI"'], {"ocr": Ocr(OcrConfig())})
    (line,) = report(result, tmp_path, ["ocr"], {})["images"]
    assert line["explanations"] == {"ocr": 'read "", wanted "HI"'}


def test_listing_and_validating_import_nothing_heavy():
    code = (
        "import json, sys; import t2ialign_judges.plugin, t2ialign_shapes.plugin, t2ialign.cli;"
        "heavy = {'torch', 'numpy', 'transformers', 'PIL', 'httpx2', 'fastapi', 'uvicorn', 'rapidocr', 'rapidfuzz'};"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} & heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
