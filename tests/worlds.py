"""Specs on the shapes world that tests share."""

#: The smallest real run: one EGGROLL step with the exact judge. Replace OUT by the folder for run directories.
WORLD = """
[run]
steps = 1
out = "OUT"
[backend]
kind = "sana-sprint"
checkpoint = "pkg:t2ialign_shapes/checkpoints/sprint-washed"
dtype = "float32"
complex_human_instruction = false
[backend.lora]
rank = 1
targets = ["attn2.to_out.0"]
[sampler]
kind = "one-step"
[optimizer]
kind = "eggroll"
population = 4
[[reward]]
kind = "shapes-graded"
[prompts]
file = "pkg:t2ialign_shapes/prompts/train.txt"
per_step = 2
"""
