"""Files that nobody should write: prompts, images and tensors are read, or refused in few words that name the file."""

from __future__ import annotations

import io
import json
import os
import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from t2ialign.errors import UsageError
from t2ialign.evaluation.score import score_images
from t2ialign.foreign import read_object, shown, tensor_header
from t2ialign.lora import reading
from t2ialign.spec import checkpoints, prompts, toml
from t2ialign.storage.embeds import EmbedsCache
from t2ialign_diffusers.folder import is_complete
from t2ialign_solvers.config import table_size
from t2ialign_solvers.table import load_table

LONGEST_MESSAGE = 4096
HOSTILE = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SEED = st.integers(0, 2**32)

#: What stands in for a value of JSON.
ODD = [
    None,
    True,
    -1,
    1e400,
    10**30,
    "",
    " ",
    "\0",
    "\x1b[31m",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[]],
    {"prompt": 1},
    ["x"],
]
GOOD_PROMPTS = {
    ".txt": "a red cube\n# a comment\n\ntwo cats, \u5706 caf\u00e9\n",
    ".jsonl": '{"prompt": "a cat", "include": [{"class": "cat", "count": 1}]}\n{"prompt": "a dog", "tag": "x"}\n',
    ".json": '[{"caption": "a cat", "id": 1}, "a dog", {"text": "a bird"}]',
    ".csv": 'item_id,text,proposition_id,question\n1,"a ""big"" cat",1,cat?\n1,"a ""big"" cat",2,big?\n2,dog,1,dog?\n',
    ".tsv": 'Prompt\tCategory\n"a ""cat"""\tanimal\na 3" nail\tthing\n',
}


def mutated(data: bytes, chooser: random.Random) -> bytes:
    """Some bytes changed, put in, taken out, doubled, or all that follow cut."""
    found = bytearray(data)
    for _ in range(chooser.randint(1, 6)):
        at = chooser.randrange(len(found) + 1)
        match chooser.randrange(6):
            case 0 if at < len(found):
                found[at] = chooser.randrange(256)
            case 1:
                found[at:at] = chooser.choice(
                    [b"\0", b'"', b"[" * 3000, b"{", b"9" * 5000, b"\xff\xfe", b"\xed\xa0\x80"]
                )
            case 2:
                del found[at : at + chooser.randint(1, 30)]
            case 3:
                found[at:at] = found[at : at + 40]
            case 4:
                del found[at:]
            case _:
                found[at:at] = chooser.choice(
                    [b"NaN", b"1e400", b"\x1b[2J", b"\r", b"\n\n", b",", b"\t", "\u2028".encode(), b"\\ud800"]
                )
    return bytes(found)


def mutated_json(value, chooser: random.Random):
    """A value with something odd at some place."""
    if isinstance(value, dict) and value and chooser.random() < 0.8:
        key = chooser.choice(list(value))
        other = {k: v for k, v in value.items() if k != key}
        name = chooser.choice([key, key, key, "", "prompt", "PROMPT "])
        return other | {name: mutated_json(value[key], chooser)}
    if isinstance(value, list) and value and chooser.random() < 0.8:
        at = chooser.randrange(len(value))
        return [*value[:at], mutated_json(value[at], chooser), *value[at + 1 :]]
    return chooser.choice(ODD)


def told(file, action) -> object:
    """What an action gave, or None where it refused the file by name and in few words."""
    try:
        return action()
    except UsageError as error:
        message = str(error)
    assert file.name in message
    assert len(message.encode("utf-8", "replace")) < LONGEST_MESSAGE
    assert error_free(message)
    return None


def error_free(text: str) -> bool:
    return text == shown(text)


@HOSTILE
@given(seed=SEED)
def test_mutated_prompt_files_are_read_or_refused_by_name(tmp_path, seed):
    chooser = random.Random(seed)
    suffix = chooser.choice(list(GOOD_PROMPTS))
    text = GOOD_PROMPTS[suffix].encode(chooser.choice(["utf-8", "utf-8-sig", "utf-16"]))
    if suffix == ".json" and chooser.random() < 0.6:
        text = json.dumps(mutated_json(json.loads(GOOD_PROMPTS[suffix]), chooser)).encode()
    elif suffix == ".jsonl" and chooser.random() < 0.6:
        lines = [json.loads(line) for line in GOOD_PROMPTS[suffix].splitlines()]
        text = b"\n".join(json.dumps(mutated_json(line, chooser)).encode() for line in lines)
    else:
        text = mutated(text, chooser)
    file = tmp_path / f"mutated{suffix}"
    file.write_bytes(text)
    found = told(file, lambda: prompts.read(file, chooser.choice([None, None, "text", "no\x1b"])))
    for prompt in found or []:
        assert prompt.strip()
        json.dumps(dict(prompt.data), allow_nan=False, ensure_ascii=False, default=str).encode()
        prompt.encode()


def picture(form: str) -> bytes:
    image, stream = Image.new("RGB", (24, 16), (200, 30, 60)), io.BytesIO()
    more = {}
    if form == "PNG":
        texts = PngInfo()
        texts.add_itxt("prompt", json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0]}}}))
        texts.add_text("parameters", '{"sui_image_params": {"prompt": "a cat"}}')
        more = {"pnginfo": texts}
    image.save(stream, format=form, **more)
    return stream.getvalue()


PICTURES = {form: picture(form) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA", "PPM")}


@HOSTILE
@given(seed=SEED)
@pytest.mark.filterwarnings("ignore")
def test_mutated_images_are_scored_or_listed(tmp_path, seed):
    chooser = random.Random(seed)
    form = chooser.choice(list(PICTURES))
    file = tmp_path / f"1.{form.lower()}"
    file.write_bytes(mutated(PICTURES[form], chooser))
    result = score_images([file], None if chooser.random() < 0.5 else ["a prompt"], {})
    assert [item.image for item in result.scored] + list(result.skipped) == [file]
    assert all(len(reason.encode("utf-8", "replace")) < LONGEST_MESSAGE for reason in result.skipped.values())
    assert all(error_free(reason) for reason in result.skipped.values())


def tensors(metadata: dict[str, str], **found: torch.Tensor) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in found.items()}, metadata)


TABLE = {"format": "t2ialign-solver-table", "probe_order": 1, "schedule": "native", "rho": None, "info": {}}
GOOD_TENSORS = [
    tensors(
        {"lora_adapter_metadata": '{"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"a": 2}}'},
        **{"transformer.a.lora_A.weight": torch.ones(2, 3), "transformer.a.lora_B.weight": torch.ones(4, 2)},
        **{"transformer.a.alpha": torch.tensor(2.0)},
    ),
    tensors(
        {"table": json.dumps(TABLE)},
        **{name: torch.full((2, 2), 0.5) for name in ("positions", "weights", "scale_dir", "scale_time")},
    ),
]


@HOSTILE
@given(seed=SEED)
def test_mutated_tensor_files_are_read_or_refused_by_name(tmp_path, caplog, seed):
    """By everything that opens them: headers for counting, LoRAs, solver tables, cached embeddings."""
    chooser = random.Random(seed)
    good = chooser.choice(GOOD_TENSORS)
    length = struct.unpack("<Q", good[:8])[0]
    header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
    if chooser.random() < 0.5:
        text = json.dumps(mutated_json(header, chooser)).encode()
        told_length = chooser.choice([len(text)] * 8 + [0, 2**63, len(text) - 1, 2**40])
        good = struct.pack("<Q", told_length) + text + body
    else:
        good = mutated(good, chooser)
    file = tmp_path / "mutated.safetensors"
    file.write_bytes(good)
    told(file, lambda: checkpoints.tensor_shapes(tmp_path))
    told(file, lambda: reading.read(file))
    told(file, lambda: table_size(file))
    told(file, lambda: load_table(str(file)))
    is_complete(file)
    cache = EmbedsCache({"in": str(tmp_path)}, ["embeds"])
    cache.folder.mkdir(parents=True, exist_ok=True)
    cache._path("a").write_bytes(good)
    (row,) = cache.fetch(["a"], lambda texts: [{"embeds": torch.zeros(1)} for _ in texts])
    assert row["embeds"].shape == (1,)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_never_waited_for(tmp_path, kind):
    if kind != "folder" and not hasattr(os, "mkfifo"):
        pytest.skip("no such files on this system")
    files = {suffix: tmp_path / f"x{suffix}" for suffix in (".txt", ".json", ".toml", ".safetensors")}
    for file in files.values():
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero")
    for action in (
        lambda: prompts.read(files[".txt"]),
        lambda: prompts.read(files[".json"]),
        lambda: toml.read(files[".toml"]),
        lambda: reading.read(files[".safetensors"]),
        lambda: table_size(files[".safetensors"]),
        lambda: table_size(files[".json"]),
    ):
        with pytest.raises(UsageError, match=rf"{tmp_path}/x.* (is a folder|is no regular file)"):
            action()


def test_a_file_is_not_read_beyond_its_limit(tmp_path):
    file = tmp_path / "large.toml"
    with file.open("wb") as stream:
        stream.truncate(2**40)  # takes no room
    with pytest.raises(UsageError, match=r"large\.toml: has 1,099,511,627,776 bytes, more than"):
        toml.read(file)
    with pytest.raises(ValueError, match="more than the"):
        read_object(file)
    with pytest.raises(ValueError, match="has a damaged safetensors header"):
        tensor_header(file)
    table = file.rename(tmp_path / "prompts.txt")
    with pytest.raises(UsageError, match=r"prompts\.txt has 1,099,511,627,776 bytes"):
        prompts.read(table)


def test_a_small_file_of_very_many_pixels_is_not_unpacked(tmp_path):
    file = tmp_path / "1.png"
    Image.new("1", (9000, 9000)).save(file)  # within every limit of pixels
    assert file.stat().st_size < 20_000
    (reason,) = score_images([file], ["x"], {}).skipped.values()
    assert "would unpack to 9000 x 9000 pixels" in reason


def test_text_of_others_is_shown_without_effect():
    assert shown("a [/] [red]b \x1b[31mc\x07\n\u5706 caf\u00e9 \u202e\ud800") == (
        "a [/] [red]b \\x1b[31mc\\x07\n\u5706 caf\u00e9 \\u202e\\ud800"
    )
    assert shown("abcdef", 4) == "abc\u2026"
