"""One token per word, from a vocabulary that is written down here and nowhere learned.

A trained (BPE) vocabulary can differ between processes, and components trained with different ids
disagree in silence; a list cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, UNK, EOS = "<pad>", "<bos>", "<unk>", "<eos>"

VOCABULARY = (
    # The end of text has id 3: text encoders of the CLIP family treat id 2 by an outdated rule.
    *(PAD, BOS, UNK, EOS),
    *("a", "two", "three", "four"),
    *("circle", "square", "triangle", "circles", "squares", "triangles"),
    *("red", "green", "blue", "yellow", "purple", "cyan"),
    *("and", "left", "right", "of", "above", "below"),
    *("on", "black", "white", "background"),
)
"""All tokens; a token's id is its place in this list. Append only: checkpoints depend on it."""

MAX_LENGTH = 16
"""Tokens per prompt, begin and end included; the longest caption has 14 or fewer."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer that is saved with every checkpoint of this package."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )
