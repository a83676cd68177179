"""Published judges as options of ``vlm-judge``: what they ask for and how their answers are read.

The questions are ours: they ask for what the published ones ask for, in the form that the checkpoints were trained to
answer in. Scores compare with published ones only under the authors' own words, which a spec gives as ``rubric``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Name = Literal["vqascore", "soft-tifa", "unifiedreward", "unifiedreward-2"]
#: A number that is followed by no further digit, so that "10" is not read as 1.
NUMBER = r"[\s*]*(\d+(?:\.\d+)?)(?!\.?\d)"
AXES = ("Alignment", "Coherence", "Style")
FINAL_SCORE = """\
This image was generated for the caption below. Go through what the caption names, one element a line, and write 1 \
behind an element that the image shows and 0 behind one that it does not show. Then rate from 1 (worst) to 5 (best) \
how well the image as a whole agrees with the caption and how good its quality is. End with this line and nothing \
behind it:
Final Score: <number from 1 to 5>

Caption: {prompt}"""
THREE_SCORES = """\
This image was generated for the caption below. Rate it from 1 (worst) to 5 (best), fractions allowed, on three \
counts: alignment, whether it shows what the caption says; coherence, whether everything in it is whole, in place \
and free of faults; style, how appealing it is, whatever the caption says. Answer with these three lines and \
nothing else:
Alignment Score (1-5): <number>
Coherence Score (1-5): <number>
Style Score (1-5): <number>

Caption: {prompt}"""

#: VQAScore (Lin et al. 2024): P(yes) among all words, of a question that quotes the prompt.
VQASCORE: dict[str, Any] = {
    "form": "yes",
    "relative": False,
    "question": 'Can what "{prompt}" describes be seen in this image? Reply with Yes or No.',
}
#: Soft-TIFA (GenEval 2): P(the right answer) of every question that the prompt's data brings.
SOFT_TIFA: dict[str, Any] = {"form": "questions"}
#: UnifiedReward 1.x: a line with a number from 1 to 5 ends the answer.
UNIFIEDREWARD: dict[str, Any] = {
    "form": "number",
    "scale": [1.0, 5.0],
    "pattern": "Final Score:" + NUMBER,
    "max_tokens": 512,
    "question": FINAL_SCORE,
}
#: UnifiedReward 2.0: three lines; their mean, and no score where one is missing.
UNIFIEDREWARD_2: dict[str, Any] = {
    "form": "number",
    "scale": [1.0, 5.0],
    "pattern": r"[\s*]+".join(rf"{axis} Score \(1-5\):{NUMBER}" for axis in AXES),
    "max_tokens": 512,
    "question": THREE_SCORES,
}
PRESETS: Mapping[Name, Mapping[str, Any]] = {
    "vqascore": VQASCORE,
    "soft-tifa": SOFT_TIFA,
    "unifiedreward": UNIFIEDREWARD,
    "unifiedreward-2": UNIFIEDREWARD_2,
}


def options(name: object) -> dict[str, Any]:
    """The options that a preset sets, but for the question; of an unknown one none."""
    return {key: value for key, value in _preset(name).items() if key != "question"}


def question(name: object, form: str) -> str | None:
    """What a preset asks; None where it has nothing to ask, or where another form was chosen."""
    preset = _preset(name)
    return preset.get("question") if preset.get("form") == form else None


def _preset(name: object) -> Mapping[str, Any]:
    return next((found for preset, found in PRESETS.items() if preset == name), {})
