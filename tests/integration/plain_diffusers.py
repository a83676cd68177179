"""What a user of an exported LoRA writes: diffusers alone, no t2ialign.

    python plain_diffusers.py CHECKPOINT LORA OUT.safetensors SEED PROMPT [PROMPT ...]

Saves the images without ("base") and with the LoRA ("tuned"); image i starts from a generator seeded with SEED + i.
"""

import sys

import torch
from diffusers import SanaSprintPipeline
from safetensors.torch import save_file

checkpoint, lora, out, seed, *prompts = sys.argv[1:]
pipe = SanaSprintPipeline.from_pretrained(checkpoint)


def images() -> torch.Tensor:
    return pipe(
        prompts,
        num_inference_steps=1,
        intermediate_timesteps=None,
        guidance_scale=4.5,
        height=32,
        width=32,
        use_resolution_binning=False,
        complex_human_instruction=None,
        max_sequence_length=16,
        generator=[torch.Generator().manual_seed(int(seed) + i) for i in range(len(prompts))],
        output_type="pt",
    ).images


base = images()
pipe.load_lora_weights(lora)
save_file({"base": base, "tuned": images()}, out)
assert not any(name.startswith("t2ialign") for name in sys.modules)
