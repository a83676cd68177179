"""What a plugin subclasses, one file per kind of part. Importing these modules does not import torch.

Shapes: images are float tensors (B, 3, H, W) in [0, 1]; latents are (B, *latent_shape) float32;
rewards are (B,), higher is better; conditionings are indexed by image. Optimizers stand above the assembled problem:
``t2ialign.problem.optimizer``.

Capability words
    backend    diffusion | autoregressive, denoiser (has one), lora (has trainable parameters),
               differentiable (images have gradients with respect to latents and LoRA),
               weights (the trained network's own weights can be read and replaced; options may take this away),
               one-step | multi-step (what its checkpoint was trained for; may be both)
    sampler    one-step | multi-step, stochastic (gives transitions), table (driven by a solver table), differentiable
    reward     differentiable, per-prompt (compares the images of one prompt),
               reference (compares with the image that another sampler draws from the same noise)
    optimizer  references (can optimise such a reward)
"""
