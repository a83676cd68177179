"""The tiny trained VAR that the shapes world ships: it is what its card says."""

from __future__ import annotations

import json

import pytest
import torch

from t2ialign.spec import prompts
from t2ialign.spec.checkpoints import package_path
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig

pytest.importorskip("t2ialign_shapes")
from t2ialign_shapes import captions, detector

REFERENCE = "pkg:t2ialign_shapes/checkpoints/var"
FOLDER = package_path(REFERENCE)


@pytest.fixture(scope="module")
def shapes_var() -> VarBackend:
    return VarBackend(VarConfig(checkpoint=REFERENCE, dtype="float32", guidance_scale=1.5, top_k=0, top_p=1.0))


def test_classes_are_captions_of_the_world(shapes_var: VarBackend) -> None:
    names = shapes_var.classes.names
    assert len(names) == 18
    assert prompts.read(FOLDER / "prompts.txt") == names
    assert {captions.parse(name).family for name in names} == {"colors"}
    assert shapes_var.encode(["a photo of a red circle", "0"]).prompts == ("a red circle", names[0])


def test_samples_are_as_good_as_the_card_says(shapes_var: VarBackend) -> None:
    texts = shapes_var.classes.names * 12
    images = shapes_var.generate(shapes_var.encode(texts), range(10_000, 10_000 + len(texts)))
    right = detector.check(images, [captions.parse(text) for text in texts]).float()
    figures = json.loads((FOLDER / "evaluation.json").read_text())
    expected = figures["accuracy"] / 100
    tolerance = 4 * (expected * (1 - expected) / len(texts)) ** 0.5
    assert abs(right.mean().item() - expected) < tolerance
    assert f"{figures['accuracy']:.1f} %" in (FOLDER / "README.md").read_text()


def test_a_batch_of_eight_is_eight_singles(shapes_var: VarBackend) -> None:
    conditioning = shapes_var.encode(shapes_var.classes.names[:8])
    images = shapes_var.generate(conditioning, range(8))
    singles = torch.cat([shapes_var.generate(conditioning[[i]], [i]) for i in range(8)])
    torch.testing.assert_close(images, singles, rtol=0, atol=1e-4)
