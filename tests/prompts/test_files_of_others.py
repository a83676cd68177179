"""Prompt files, pictures and folders as other programs and systems leave them: the right texts, or a reason."""

from __future__ import annotations

import codecs
import datetime
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.evaluation.folders import find_images
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import read
from t2ialign.storage.image_files import read_image
from t2ialign.storage.image_texts import NoPrompt, prompt_of

READ = {
    "utf-32.txt": "a red circle\na blue square\n".encode("utf-32"),
    "utf-32-be.txt": codecs.BOM_UTF32_BE + "a red circle\na blue square".encode("utf-32-be"),
    "joined.txt": b"\xef\xbb\xbfa red circle\r\n\xef\xbb\xbfa blue square\r\n",
    "excel.csv": b"sep=;\r\nPrompt;n\r\na red circle;1\r\na blue square;2\r\n",
    "excel-unicode.csv": "Prompt\tn\r\na red circle\t1\r\na blue square\t2\r\n".encode("utf-16"),
    "blank-first.csv": b"\r\nPrompt;n\r\na red circle;1\r\na blue square;2\r\n",
    "blank-rows.csv": b"prompt,n\na red circle,1\n,\n\na blue square,2\n , \n",
    "blank-rows.tsv": b"prompt\tn\na red circle\t1\n\t\na blue square\t2\n",
    "named.json": b'{"version": 1, "prompts": ["a red circle", "a blue square"]}',
    "items.json": b'{"data": [{"prompt": "a red circle"}, {"prompt": "a blue square"}]}',
}


@pytest.mark.parametrize("name", READ)
def test_files_of_spreadsheets_and_other_systems_give_their_texts(tmp_path, name):
    (tmp_path / name).write_bytes(READ[name])
    assert read(tmp_path / name) == ["a red circle", "a blue square"]


def test_one_object_is_one_prompt(tmp_path):
    (tmp_path / "one.json").write_text('{"prompt": "a red circle", "seed": 3}')
    assert [(str(prompt), prompt.data) for prompt in read(tmp_path / "one.json")] == [("a red circle", {"seed": 3})]


def test_a_parquet_of_pictures_gives_their_prompts_alone(tmp_path, monkeypatch):
    """As data sets of the hub store them; what stays of a row can be written as JSON."""
    row = {"caption": "a red circle", "made": datetime.date(2024, 5, 1), "score": float("nan"), "image": b"\x89PNG"}
    types = {"caption": "string", "made": "date32[day]", "score": "double", "image": "struct<bytes: binary>"}
    parquet = SimpleNamespace(
        read_schema=lambda path: [SimpleNamespace(name=name, type=kind) for name, kind in types.items()],
        read_table=lambda path, columns: SimpleNamespace(to_pylist=lambda: [{name: row[name] for name in columns}]),
    )
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (prompt,) = read(tmp_path / "rows.parquet")
    assert (str(prompt), prompt.data) == ("a red circle", {"made": "2024-05-01", "score": None})


REFUSED = {
    "utf-16-without-mark.txt": ("a red circle\n".encode("utf-16-le"), "a zero at character 1: no text, or UTF-16"),
    "sheet.csv": (b"PK\x03\x04\x14\0\x06", "no text"),
    "latin.txt": ("un café".encode("cp1252"), "save it as UTF-8"),
    "table.txt": (b"Prompts,Category\na red circle,Colors\n", "line 1: looks like the header of a table"),
    "table2.txt": (b"id\tPrompt\n1\ta red circle\n", "line 1: looks like the header of a table"),
    "objects.txt": (b'{"prompt": "a red circle"}\n', r"line 1: is JSON; .* is a \.jsonl"),
    "lines.json": (b'{"prompt": "a"}\n{"prompt": "b"}\n', r"is no JSON: Extra data.* is a \.jsonl"),
    "twice.csv": (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_read_wrongly_is_refused(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / name)


def test_wildcards_and_commas_are_text(tmp_path):
    texts = ["{red|blue} circle", "a circle, prompt delivery, soft light", "a blue square,prompt", '{"quoted" words']
    (tmp_path / "p.txt").write_text("\n".join(texts))
    assert read(tmp_path / "p.txt") == texts


KSAMPLER = {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}}
GRAPH = {
    "1": KSAMPLER,
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red circle"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurred"}},
}
GUIDED = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0]}},
    "2": {"class_type": "BasicGuider", "inputs": {"conditioning": ["3", 0]}},
    "3": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["4", 0]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red circle"}},
}
COMBINED = {**GRAPH, "1": {"class_type": "KSampler", "inputs": {"positive": ["4", 0], "negative": ["3", 0]}}}
COMBINED["4"] = {
    "class_type": "ConditioningCombine",
    "inputs": {"conditioning_1": ["2", 0], "conditioning_2": ["3", 0]},
}
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
A1111 = f"a red circle\nNegative prompt: blurred\n{SETTINGS}"


@pytest.mark.parametrize(
    ("texts", "negative"),
    [
        ({"prompt": json.dumps({**GRAPH, "extra": {}})}, "blurred"),
        ({"prompt": json.dumps(GUIDED)}, None),
        ({"Prompt": "a red circle"}, None),
        ({"parameters": A1111.replace("\n", "\r\n")}, "blurred"),
        ({"parameters": f"{A1111}\nTemplate: a {{red|blue}} circle"}, "blurred"),
        ({"parameters": json.dumps({**GRAPH, "extraMetadata": "{}"})}, "blurred"),
    ],
)
def test_pictures_of_other_programs_tell_their_prompt(texts, negative):
    prompt = prompt_of(texts)
    assert (str(prompt), prompt.data.get("negative_prompt")) == ("a red circle", negative)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}),  # the editor's own form
        json.dumps(GRAPH)[:60],  # cut
        json.dumps(["a red circle"]),
        json.dumps(COMBINED),
        " \n",
    ],
)
@pytest.mark.parametrize("key", ["prompt", "parameters"])
def test_json_is_never_a_prompt(key, text):
    with pytest.raises(NoPrompt):
        prompt_of({key: text})


COMMENTS = {
    "big-endian": b"UNICODE\0" + A1111.encode("utf-16-be"),
    "little-endian": b"UNICODE\0" + A1111.encode("utf-16-le"),
    "marked": b"UNICODE\0" + A1111.encode("utf-16"),
    "ascii": b"ASCII\0\0\0" + A1111.encode(),
    "undefined": bytes(8) + A1111.encode(),
    "without a kind": A1111.encode(),
}


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "avif"])
def test_exif_comments_of_every_byte_order_are_read(tmp_path, suffix):
    for kind, comment in COMMENTS.items():
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        file = tmp_path / f"{kind}.{suffix}"
        Image.new("RGB", (8, 8)).save(file, exif=exif.tobytes())
        assert prompt_of(read_image(file)[1]) == "a red circle", kind


def test_a_webp_of_comfyui_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = 'workflow:{"nodes": []}', f"prompt:{json.dumps(GRAPH)}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert prompt_of(read_image(tmp_path / "a.webp")[1]) == "a red circle"


STREWN = (".DS_Store", "._style.safetensors", "._0001.png", "Thumbs.db", "desktop.ini", "__MACOSX/0001.png")


def test_what_systems_strew_is_never_looked_at(tmp_path):
    for name in STREWN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert not places.listed(tmp_path)
    assert not places.listed(tmp_path, "**/*")
    before = checkpoints.fingerprint(tmp_path, ["."])
    save_file({"a": torch.zeros(1)}, tmp_path / "style.safetensors")
    picture = tmp_path / "0001.png"
    Image.new("RGB", (4, 4)).save(picture)
    assert checkpoints.find_lora(tmp_path).name == "style.safetensors"
    assert checkpoints.tensor_shapes(tmp_path) == {"a": [1]}
    assert find_images(tmp_path, recursive=True) == [picture]
    after = checkpoints.fingerprint(tmp_path, ["."])
    (tmp_path / "._more").write_bytes(b"x")
    assert before != after == checkpoints.fingerprint(tmp_path, ["."])
