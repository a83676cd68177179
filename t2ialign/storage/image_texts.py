"""The prompt that a picture's own metadata tells, whoever wrote it: A1111 and its kin, ComfyUI, others, ourselves."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from t2ialign.foreign import parse_json
from t2ialign.spec.prompts import Prompt

_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769
#: Make, model and description, in which ComfyUI's WebP files keep the graph.
_COMFYUI_TAGS = (0x0110, 0x010F, 0x010E)
_UNICODE = b"UNICODE\0"
_ENCODINGS = (_UNICODE, b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))
#: No text that people draw begins so; "{a|b}" of wildcards does not.
_JSON = re.compile(r'\s*(?:\{\s*"|\[\s*["{])')
#: "Key: value" of A1111's last line; a value in quotes may hold commas.
_PARAMETER = re.compile(r'\s*[\w \-/]+:\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_PASSED_ON = (
    "positive",
    "conditioning",
    "guider",
    "conditioning_1",
    "conditioning_2",
    "conditioning_to",
    "conditioning_from",
)
#: Two of these are one conditioning of two texts.
_JOINED = ("conditioning_1", "conditioning_2", "conditioning_to", "conditioning_from")
_TEXTS = ("text", "t5xxl", "text_g", "clip_l", "text_l", "clip_g", "string", "value", "prompt")


class NoPrompt(ValueError):
    """The metadata tells no prompt; the message says what it does tell."""


def texts_of(file: Any) -> dict[str, str]:
    """Text chunks of an opened Pillow image; of Exif, a comment as "parameters" and ComfyUI's "prompt:{...}" tags."""
    texts = {k: v for k, v in {**file.info, **getattr(file, "text", {})}.items() if isinstance(v, str)}
    exif = file.getexif()
    for value in map(exif.get, _COMFYUI_TAGS):
        if isinstance(value, str) and value.startswith("prompt:"):
            texts.setdefault("prompt", value.removeprefix("prompt:"))
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes | str) and (text := _comment(comment)):
        texts.setdefault("parameters", text)
    return texts


def _comment(comment: bytes | str) -> str:
    """An Exif comment, whose first eight bytes should name its encoding; both orders of UTF-16 are in use."""
    if isinstance(comment, str):
        return comment.strip("\0 ")
    kind, body = (comment[:8], comment[8:]) if comment[:8] in _ENCODINGS else (b"", comment)
    if kind == _UNICODE:
        little = body.startswith(codecs.BOM_UTF16_LE) or body[1::2].count(0) > body[::2].count(0)
        text = body.decode("utf-16-le" if little else "utf-16-be", errors="replace").removeprefix("\ufeff")
    else:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = body.decode("latin-1")
    return text.strip("\0 ")


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
    for name in ("prompt", "Prompt"):
        if name in texts:
            graph = _graph(_object(texts[name]))
            return _comfyui(graph) if graph else _with(texts[name], None)
    raise NoPrompt("no prompt: no text of the picture tells one")


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text, finite=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value else None


def _graph(content: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The nodes of a ComfyUI graph; what stands beside them is others' metadata."""
    nodes = (content or {}).items()
    return {name: node for name, node in nodes if isinstance(node, dict) and isinstance(node.get("class_type"), str)}


def _with(text: Any, negative: Any) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise NoPrompt("no prompt: the picture's metadata has an empty one")
    if _JSON.match(text):
        raise NoPrompt("no prompt: the picture's text is JSON, not a prompt: give --prompts or --prompt")
    return Prompt(text, {"negative_prompt": negative} if isinstance(negative, str) else {})


def _of_json(content: dict[str, Any]) -> Prompt:
    """SwarmUI and Fooocus; ComfyUI's graph as Civitai keeps it."""
    if graph := _graph(content):
        return _comfyui(graph)
    inner = content.get("sui_image_params", content)
    inner = inner if isinstance(inner, dict) else content
    return _with(inner.get("prompt"), inner.get("negativeprompt", inner.get("negative_prompt")))


def _a1111(text: str) -> Prompt:
    lines = text.strip().split("\n")
    # Extensions write lines behind that of the settings.
    settings = (number for number in reversed(range(len(lines))) if _is_settings(lines[number]))
    lines = lines[: next(settings, len(lines))]
    positive: list[str] = []
    negative: list[str] | None = None
    for line in map(str.strip, lines):
        if negative is None and line.startswith("Negative prompt:"):
            negative = [line.removeprefix("Negative prompt:").strip()]
        else:
            (positive if negative is None else negative).append(line)
    return _with("\n".join(positive), None if negative is None else "\n".join(negative))


def _is_settings(line: str) -> bool:
    return len(_PARAMETER.findall(line)) >= 3 and line.count(":") >= 3


def _comfyui(graph: dict[str, dict[str, Any]]) -> Prompt:
    """Follow the samplers' positive conditioning to the nodes with its text."""
    samplers = [node for node in graph.values() if node["class_type"] in _SAMPLERS]
    found = {text for node in samplers for text in _texts_behind(graph, node, "positive")}
    if len(found) != 1:
        raise NoPrompt(
            "PNG text 'prompt' is a ComfyUI graph that leads to no single prompt: give --prompts or --prompt"
        )
    negative = {text for node in samplers for text in _texts_behind(graph, node, "negative")}
    return _with(found.pop(), negative.pop() if len(negative) == 1 else None)


def _texts_behind(
    graph: dict[str, dict[str, Any]], node: dict[str, Any], side: str, turned: bool = False, depth: int = 0
) -> set[str]:
    """Texts of a side's conditioning.

    Args:
        turned: the way already went by an input of the side's name; before, a sampler leads to its guider alone, whose
            ``conditioning`` is positive.
    """
    inputs = node.get("inputs", {})
    if depth > 50 or not isinstance(inputs, dict) or node["class_type"] == "ConditioningZeroOut":
        return set()
    if side in inputs:
        names: tuple[str, ...] = (side,)
    elif turned:
        names = (*_PASSED_ON, *_TEXTS)
    else:
        names = ("guider", "conditioning") if side == "positive" else ("guider",)
    found: set[str] = set()
    for name in names:
        value = inputs.get(name)
        if isinstance(value, str) and name in _TEXTS and not found:
            return {value}
        if isinstance(value, list) and value and str(value[0]) in graph:
            found |= _texts_behind(graph, graph[str(value[0])], side, turned or name != "guider", depth + 1)
            if name not in _JOINED:
                break
    return found
