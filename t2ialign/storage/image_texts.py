"""The prompt that a picture's own metadata tells, whoever wrote it: A1111 and its kin, ComfyUI, others, ourselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from t2ialign.foreign import parse_json
from t2ialign.spec.prompts import Prompt

_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769
#: "Key: value" of A1111's last line; a value in quotes may hold commas.
_PARAMETER = re.compile(r'\s*[\w \-/]+:\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_PASSED_ON = ("positive", "conditioning", "guider", "conditioning_1", "conditioning_to")
_TEXTS = ("text", "t5xxl", "text_g", "clip_l", "text_l", "clip_g", "string", "value", "prompt")


class NoPrompt(ValueError):
    """The metadata tells no prompt; the message says what it does tell."""


def texts_of(file: Any) -> dict[str, str]:
    """Text chunks of an opened Pillow image, and an Exif comment as "parameters"."""
    texts = {k: v for k, v in {**file.info, **getattr(file, "text", {})}.items() if isinstance(v, str)}
    comment = file.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and "parameters" not in texts:
        kind, body = comment[:8], comment[8:]
        texts["parameters"] = body.decode("utf-16-be" if kind.startswith(b"UNICODE") else "latin-1").strip("\0")
    return texts


def prompt_of(texts: Mapping[str, str]) -> Prompt:
    """The prompt in a picture's texts, with ``negative_prompt`` as data where there is one.

    Raises:
        NoPrompt: there is none, or a graph that leads to no single text.
    """
    if parameters := texts.get("parameters"):
        content = _object(parameters)
        return _of_json(content) if content else _a1111(parameters)
    if invoke := _object(texts.get("invokeai_metadata", "")):
        return _with(invoke.get("positive_prompt"), invoke.get("negative_prompt"))
    if texts.get("Software") == "NovelAI":
        comment = _object(texts.get("Comment", "")) or {}
        return _with(texts.get("Description") or comment.get("prompt"), comment.get("uc"))
    if "prompt" in texts:
        graph = _object(texts["prompt"])
        if graph and all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
            return _comfyui(graph)
        return Prompt(texts["prompt"])
    raise NoPrompt("no prompt: no text of the picture tells one")


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text, finite=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value else None


def _with(text: Any, negative: Any) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise NoPrompt("no prompt: the picture's metadata has an empty one")
    return Prompt(text, {"negative_prompt": negative} if isinstance(negative, str) else {})


def _of_json(content: dict[str, Any]) -> Prompt:
    """SwarmUI and Fooocus."""
    inner = content.get("sui_image_params", content)
    inner = inner if isinstance(inner, dict) else content
    return _with(inner.get("prompt"), inner.get("negativeprompt", inner.get("negative_prompt")))


def _a1111(text: str) -> Prompt:
    *lines, last = text.strip().split("\n")
    if len(_PARAMETER.findall(last)) < 3 or last.count(":") < 3:
        lines.append(last)
    positive: list[str] = []
    negative: list[str] | None = None
    for line in map(str.strip, lines):
        if negative is None and line.startswith("Negative prompt:"):
            negative = [line.removeprefix("Negative prompt:").strip()]
        else:
            (positive if negative is None else negative).append(line)
    return _with("\n".join(positive), None if negative is None else "\n".join(negative))


def _comfyui(graph: dict[str, dict[str, Any]]) -> Prompt:
    """Follow a sampler's positive conditioning to the node with its text."""
    samplers = [node for node in graph.values() if node["class_type"] in _SAMPLERS]
    found = {text for node in samplers if (text := _text_behind(graph, node, "positive"))}
    if len(found) != 1:
        raise NoPrompt(
            "PNG text 'prompt' is a ComfyUI graph that leads to no single prompt: give --prompts or --prompt"
        )
    negative = {text for node in samplers if (text := _text_behind(graph, node, "negative"))}
    return _with(found.pop(), negative.pop() if len(negative) == 1 else None)


def _text_behind(graph: dict[str, dict[str, Any]], node: dict[str, Any], side: str, depth: int = 0) -> str | None:
    inputs = node.get("inputs", {})
    if depth > 50 or not isinstance(inputs, dict) or node["class_type"] == "ConditioningZeroOut":
        return None
    names = (side,) if side in inputs else _PASSED_ON if depth == 0 else (*_PASSED_ON, *_TEXTS)
    for name in names:
        value = inputs.get(name)
        if isinstance(value, str) and name in _TEXTS:
            return value
        if isinstance(value, list) and value and str(value[0]) in graph:
            return _text_behind(graph, graph[str(value[0])], side, depth + 1)
    return None
