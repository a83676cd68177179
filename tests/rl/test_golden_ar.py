"""GRPO of next-scale models against numbers derived from its equations, in float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t2ialign_rl.advantages import advantages, clipped_loss
from t2ialign_rl.methods.grpo_ar import k3, token_weights
from t2ialign_var.sampling import guided_logits

FILE = Path(__file__).parents[1] / "golden" / "rl_ar.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as stream:
    CONFIG = json.loads(stream.metadata()["config"])


def close(found, expected):
    torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-10)


def of_tokens(logits):
    return logits.log_softmax(-1).gather(-1, GOLDEN["tokens"][..., None]).squeeze(-1)


def of_bits(logits):
    return logits.log_softmax(-1).gather(-1, GOLDEN["bits"][..., None]).squeeze(-1).sum(-1)


def loss(new, old, reference, weights):
    policy = clipped_loss(GOLDEN["advantages"][:, None], torch.exp(new - old), CONFIG["clip"])
    distance = k3(new, reference)
    return (weights * (policy + CONFIG["kl"] * distance)).sum(1).mean(), policy, distance


def test_weights_and_advantages():
    assert GOLDEN["scale"].bincount().tolist() == [side**2 for side in CONFIG["ladder"]]
    close(token_weights(GOLDEN["scale"], CONFIG["alpha"]), GOLDEN["panw"])
    close(advantages(GOLDEN["rewards"], GOLDEN["group"], "prompt"), GOLDEN["advantages"])


@pytest.mark.parametrize(("name", "alpha"), [("loss", CONFIG["alpha"]), ("loss_uniform", 0.0)])
def test_loss_of_tokens(name, alpha):
    logits = GOLDEN["logits_new"].clone().requires_grad_()
    new, old, reference = of_tokens(logits), of_tokens(GOLDEN["logits_old"]), of_tokens(GOLDEN["logits_ref"])
    for key, found in (("new", new), ("old", old), ("ref", reference)):
        close(found, GOLDEN[f"logp_{key}"])
    found, policy, distance = loss(new, old, reference, token_weights(GOLDEN["scale"], alpha))
    close(policy, GOLDEN["policy"])
    close(torch.exp(new - old), GOLDEN["ratio"])
    close(distance, GOLDEN["k3"])
    close(found[None], GOLDEN[name])
    gradient = GOLDEN["grad_logits_new" if alpha else "grad_uniform"]
    close(torch.autograd.grad(found, logits)[0], gradient)


def test_log_probs_of_guided_logits():
    scales = len(CONFIG["ladder"])
    found = guided_logits(
        GOLDEN["logits_new"], GOLDEN["logits_uncond"], GOLDEN["scale"][:, None], scales, CONFIG["cfg"]
    )
    close(of_tokens(found), GOLDEN["logp_guided"])


def test_loss_of_bits():
    logits = GOLDEN["bit_logits_new"].clone().requires_grad_()
    new, old, reference = of_bits(logits), of_bits(GOLDEN["bit_logits_old"]), of_bits(GOLDEN["bit_logits_ref"])
    for key, one in (("new", new), ("old", old), ("ref", reference)):
        close(one, GOLDEN[f"bit_logp_{key}"])
    found, _, distance = loss(new, old, reference, token_weights(GOLDEN["scale"], CONFIG["alpha"]))
    close(distance, GOLDEN["bit_k3"])
    close(torch.exp(new - old), GOLDEN["bit_ratio"])
    close(found[None], GOLDEN["bit_loss"])
    close(torch.autograd.grad(found, logits)[0], GOLDEN["grad_bit_logits_new"])
