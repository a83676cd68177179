"""What a user of an exported LoRA writes: diffusers alone, no t2ialign.

    python plain_stable_diffusion.py CHECKPOINT LORA OUT.safetensors STEPS GUIDANCE SEED PROMPT [PROMPT ...]

Saves the images without ("base") and with the LoRA ("tuned"); image i starts from a generator seeded with SEED + i.
"""

import sys

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

checkpoint, lora, out, steps, guidance, seed, *prompts = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(checkpoint)


def images() -> torch.Tensor:
    return pipe(
        prompts,
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        generator=[torch.Generator().manual_seed(int(seed) + i) for i in range(len(prompts))],
        output_type="pt",
    ).images


base = images()
pipe.load_lora_weights(lora)
save_file({"base": base, "tuned": images()}, out)
assert not any(name.startswith("t2ialign") for name in sys.modules)
