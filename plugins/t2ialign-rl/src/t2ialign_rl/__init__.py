"""Online reinforcement learning of a text-to-image LoRA: DiffusionNFT, AWM, online DPO and Flow-GRPO."""
