"""Tiny models with the golden weights, written to disk in the formats that the rewards read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@dataclass(frozen=True)
class Golden:
    """Tensors and metadata of one golden file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def images(self) -> Tensor:
        """Images whose preprocessing gives the golden ``pixel_values``."""
        return self["pixel_values"] * STD + MEAN


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    def read(name: str) -> Golden:
        with safe_open(GOLDEN / f"rewards_{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no dict)
            metadata = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
        return Golden(tensors, metadata)

    return read


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _write_tokenizer(folder: Path, size: int, limit: int, begin: int, end: int) -> None:
    """A tokenizer whose word "t07" has id 7 (two digits, since special tokens are found inside longer words)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{i:02d}": i for i in range(size)}, unk_token="t00"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"t{begin:02d} $A t{end:02d}", special_tokens=[(f"t{begin:02d}", begin), (f"t{end:02d}", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="t00",
        eos_token=f"t{end:02d}",
        pad_token=f"t{end:02d}",
        model_max_length=limit,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def std() -> Tensor:
    """Channel scale between gradients with respect to images and to pixel values."""
    return STD


@pytest.fixture(scope="session")
def words() -> Callable[..., str]:
    return _words


def _words(ids: Sequence[int] | Tensor, end: int = 63) -> str:
    """The prompt that ``_write_tokenizer``'s tokenizer turns into these ids."""
    inner = [int(i) for i in ids][1:]
    return " ".join(f"t{i:02d}" for i in inner[: inner.index(end)])


def _write_clip_base(folder: Path, sizes: dict[str, Any]) -> Path:
    """config.json and tokenizer of a tiny CLIP, without weights."""
    from transformers import CLIPConfig

    tokens = {"bos_token_id": 62, "pad_token_id": 63}
    CLIPConfig(
        text_config=sizes["text"] | tokens, vision_config=sizes["vision"], projection_dim=sizes["projection_dim"]
    ).save_pretrained(folder)
    _write_tokenizer(folder, sizes["text"]["vocab_size"], limit=16, begin=62, end=63)
    return folder


def _write_clip(folder: Path, weights: dict[str, Tensor], sizes: dict[str, Any]) -> Path:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return _write_clip_base(folder, sizes)


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Writes a CLIP model in the transformers format: (folder, weights, sizes) -> folder."""
    return _write_clip


@pytest.fixture(scope="session")
def write_clip_base() -> Callable[..., Path]:
    """Writes config.json and tokenizer of a CLIP model: (folder, sizes) -> folder."""
    return _write_clip_base


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., None]:
    """Writes a tokenizer whose word "t07" has id 7: (folder, size, limit, begin, end)."""
    return _write_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Golden]) -> Path:
    """The golden CLIP model."""
    data = golden("clip")
    return _write_clip(tmp_path_factory.mktemp("clip"), data.below("weights."), data.metadata["config_clip"])


@pytest.fixture(scope="session")
def pick_folder(tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Golden]) -> Path:
    """The golden PickScore model."""
    data = golden("clip")
    return _write_clip(tmp_path_factory.mktemp("pick"), data.below("pick_weights."), data.metadata["config_pick"])


@pytest.fixture(scope="session")
def clip_vocabulary() -> Any:
    """CLIP's tokenizer with the entries that the golden prompts need."""
    from transformers import CLIPTokenizer

    content = json.loads((GOLDEN / "clip_bpe_subset.json").read_text(encoding="utf-8"))
    merges = [tuple(pair) for pair in content["merges"]]
    return CLIPTokenizer(vocab=content["vocab"], merges=merges, model_max_length=77)


def _open_clip_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's description of a model as transformers' sizes."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    shared = {"hidden_act": "gelu"}
    return {
        "projection_dim": config["embed_dim"],
        "vision": shared
        | {
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text": shared
        | {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "eos_token_id": 2,
        },
    }


@pytest.fixture(scope="session")
def hps_base(tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Golden]) -> Path:
    """Settings and tokenizer of the model that the golden HPSv2 weights belong to."""
    sizes = _open_clip_sizes(golden("hpsv2").metadata["config"])
    return _write_clip_base(tmp_path_factory.mktemp("hps_base"), sizes)


@pytest.fixture(scope="session")
def hps_checkpoint(tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Golden]) -> Path:
    """A folder with both versions in the released form; v2.1 has the opposite image embedding."""
    folder = tmp_path_factory.mktemp("hps")
    weights = golden("hpsv2").below("weights.")
    torch.save({"state_dict": weights}, folder / "HPS_v2_compressed.pt")
    changed = weights | {"visual.proj": -weights["visual.proj"]}
    torch.save({"state_dict": changed}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.fixture(scope="session")
def hpsv3_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL with HPSv3's head: HPSv3.safetensors in the released layout, config.json and tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("hpsv3")
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    words = [f"t{i:02d}" for i in range(20)] + special
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="t00"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>"
        "{% endfor %}"
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t00", pad_token="<|im_end|>", additional_special_tokens=special
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = Qwen2VLConfig(
        text_config=heads
        | {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=words.index("<|image_pad|>"),
        vision_start_token_id=words.index("<|vision_start|>"),
        vision_end_token_id=words.index("<|vision_end|>"),
    )
    sizes.save_pretrained(folder)
    torch.manual_seed(0)
    sizes.text_config.vocab_size = len(words) + 1  # as the authors resize it, with <|Reward|> the last
    state = Qwen2VLForConditionalGeneration(sizes).state_dict()
    head = {"0": (64, 32), "3": (16, 64), "5": (2, 16)}
    for number, shape in head.items():
        state[f"rm_head.{number}.weight"] = torch.randn(shape) / shape[1] ** 0.5
        state[f"rm_head.{number}.bias"] = torch.randn(shape[0])
    released = {  # transformers 4.45's names
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value.clone()
        for key, value in state.items()
    }
    save_file(released, folder / "HPSv3.safetensors")
    (folder / "rubric.txt").write_text("t01 t02 {prompt} t03 <|Reward|> t04\n")
    return folder
