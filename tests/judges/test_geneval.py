"""The reward ``geneval`` on tiny random detectors of the real classes, and on hand-made outputs of them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from t2ialign import Prompt, UsageError
from t2ialign.testing import check_reward
from t2ialign_judges.colors import Colors, cut_out
from t2ialign_judges.config import GenEvalConfig
from t2ialign_judges.detectors import box_of, segments
from t2ialign_judges.geneval import GenEval
from t2ialign_judges.rules import COLORS

CLASSES = ["dog", "cup", "mouse"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "a", "photo", "of", "object", *CLASSES, *COLORS]
PROMPTS = [
    Prompt("two dogs", {"tag": "counting", "include": [{"class": "dog", "count": 2}]}),
    Prompt("a red cup", {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}),
    Prompt(
        "a dog left of a cup",
        {
            "tag": "position",
            "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        },
    ),
]


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=16,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder)
    torch.manual_seed(0)
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 3}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """One folder per kind."""
    import transformers as T

    root = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(0)

    swin = T.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    mask2former = T.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=8,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=8, num_queries=6,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    folder = root / "mask2former"
    T.Mask2FormerForUniversalSegmentation(mask2former).save_pretrained(folder)
    T.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)

    folder = root / "owlv2"
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    T.Owlv2ForObjectDetection(T.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    T.Owlv2Processor(T.Owlv2ImageProcessor(size={"height": 32, "width": 32}), write_tokenizer(folder)).save_pretrained(
        folder
    )

    folder = root / "grounding-dino"
    bert = T.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )  # fmt: skip
    dino = T.GroundingDinoConfig(
        backbone_config=T.SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=8, max_text_len=16,
    )  # fmt: skip
    T.GroundingDinoForObjectDetection(dino).save_pretrained(folder)
    T.GroundingDinoProcessor(
        T.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), write_tokenizer(folder)
    ).save_pretrained(folder)
    return root


@pytest.mark.parametrize("kind", ["mask2former", "owlv2", "grounding-dino"])
def test_tiny_detectors_of_the_real_classes(kind, detectors, clip):
    options = {"threshold": 0.0, "counting_threshold": 0.0, "text_threshold": 0.0}
    reward = GenEval(GenEvalConfig(model=str(detectors / kind), clip=str(clip), form="graded", **options))
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    check_reward(reward, images, PROMPTS)
    found = reward.detector(Image.new("RGB", (64, 48), "grey"), ["dog", "cup"])
    assert set(found) == {"dog", "cup"}
    objects = [one for several in found.values() for one in several]
    assert objects or kind == "grounding-dino"  # random phrases are seldom a class
    assert all(0 <= one.detection.score <= 1 and one.detection.box[2] <= 200 for one in objects)
    assert all(text for text in reward.explain(images, PROMPTS))


def test_benchmark_thresholds_by_detector(detectors):
    limits = {
        kind: GenEval(GenEvalConfig(model=str(detectors / kind))).limits
        for kind in ("mask2former", "owlv2", "grounding-dino")
    }
    assert [(own.threshold, own.counting_threshold, own.max_overlap) for own in limits.values()] == [
        (0.3, 0.9, 1.0),
        (0.1, 0.1, 0.5),
        (0.25, 0.25, 0.5),
    ]
    own = GenEval(GenEvalConfig(model=str(detectors / "owlv2"), threshold=0.2)).limits
    assert own.counting_threshold == 0.2


def test_another_model_is_named(clip):
    with pytest.raises(UsageError, match="holds a 'clip'; detectors are mask2former, owlv2, grounding-dino"):
        GenEval(GenEvalConfig(model=str(clip))).score(torch.zeros(1, 3, 8, 8), PROMPTS[:1])


def test_a_prompt_without_metadata_is_named(detectors):
    reward = GenEval(GenEvalConfig(model=str(detectors / "owlv2")))
    with pytest.raises(UsageError, match="reads GenEval's 'include', which the prompt 'a dog' does not have"):
        reward.score(torch.zeros(1, 3, 8, 8), ["a dog"])


def test_segments_have_the_scores_of_the_published_pipeline():
    class_logits = torch.tensor([[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 9.0]])
    mask_logits = torch.full((3, 4, 4), -5.0)
    mask_logits[0, 1:3, :2] = 2.0
    mask_logits[1, 0, 3] = 1.0
    found = segments(class_logits, mask_logits, (4, 4), {0: "dog", 1: "cup"}, 0.3)
    probabilities = class_logits.softmax(-1)
    (dog,), (cup,) = found["dog"], found["cup"]
    assert dog.detection.box == (0, 1, 2, 3)
    assert dog.detection.score == pytest.approx((probabilities[0, 0] * torch.tensor(2.0).sigmoid()).item(), abs=1e-5)
    assert cup.detection.box == (3, 0, 4, 1)
    assert box_of(torch.zeros(4, 4, dtype=torch.bool)) == (0, 0, 0, 0)
    # One mask may be of two classes.
    both = segments(class_logits[1:2], mask_logits[1:2], (4, 4), {0: "dog", 1: "cup"}, 0.0)
    assert both["dog"][0].detection.box == both["cup"][0].detection.box


def test_colours_are_read_inside_the_mask_and_the_box():
    image = Image.new("RGB", (8, 8), "blue")
    image.paste("red", (2, 2, 5, 5))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 2:5] = True
    part = cut_out(image, (1.0, 1.0, 6.0, 6.0), mask)
    assert part.size == (5, 5)
    assert part.getpixel((0, 0)) == (153, 153, 153)
    assert part.getpixel((2, 2)) == (255, 0, 0)
    assert cut_out(image, (10.5, 5.5, 11.5, 5.5), None) is None


def test_the_colour_is_the_nearest_of_the_classes_texts():
    class Tower:
        """Embeds a picture as its mean colour, and a text as the colour that it names."""

        visual_projection = torch.nn.Linear(1, 1)

        def image_embeds(self, images):
            return images.mean((2, 3)) / images.mean((2, 3)).norm(dim=-1, keepdim=True)

        def text_embeds(self, texts):
            rgb = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
            rows = [next((rgb[c] for c in rgb if f" {c}" in text), (0.5, 0.5, 0.5)) for text in texts]
            return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)

    colors = Colors(Tower())
    image = Image.new("RGB", (8, 8), (10, 10, 250))
    assert colors(image, "cup", (0, 0, 8, 8), None) == "blue"
    assert colors(image, "cup", (3, 3, 3, 3), None) == ""
