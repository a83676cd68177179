"""Losses, gradients, advantages, pairs and schedules against numbers of the published codes, in float64."""

import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from t2ialign import Denoiser, Prediction
from t2ialign.lora.average import Average
from t2ialign.spec.prompts import Prompt
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.gaussian import divergence, log_prob
from t2ialign.tensors.paths import FlowPath
from t2ialign_rl.advantages import advantages, clipped, clipped_loss
from t2ialign_rl.config import AwmConfig, FlowGrpoConfig, NftConfig
from t2ialign_rl.forward import along, like_rows, noised, squared_error, stratified
from t2ialign_rl.forward_process import Noised, distance
from t2ialign_rl.methods import awm, nft, online_dpo
from t2ialign_rl.methods import flow_grpo as grpo
from t2ialign_rl.windows import Windowed, window_start
from t2ialign_solvers.config import FlowSdeConfig, OdeConfig
from t2ialign_solvers.flow_sde import FlowSde
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M
from t2ialign_solvers.single_step import Euler

FOLDER = Path(__file__).parents[1] / "golden"
NFT, GRPO, AWM, DPO = (load_file(FOLDER / f"rl_{name}.safetensors") for name in ("nft", "grpo", "awm", "dpo"))
#: Log-probabilities were recorded with a float32 constant log sqrt(2 pi).
CONSTANT = 1e-7
WEIGHTINGS = ["uniform", "t", "t2", "huber", "ghuber"]


def hyper(golden, name):
    return golden[f"hp_{name}"].item()


def close(found, expected, tolerance=1e-9):
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def gradient_close(loss, leaf, expected, tolerance=1e-6):
    (found,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


class Policies(Denoiser):
    """The recorded velocity of the policy whose context it is called in: theta's outside of all."""

    def __init__(self, golden, leaf):
        super().__init__(FlowPath(), Conditioning((Prompt(""),) * len(leaf), {}))
        self.golden, self.leaf, self.now = golden, leaf, None

    @contextmanager
    def swapped(self, name):
        self.now = name
        yield
        self.now = None

    def disabled(self):
        return self.swapped("v_ref")

    def predict(self, x, t):
        return along(self.path, x, t, self.golden[self.now] if self.now else self.leaf)

    def rows(self, index):
        raise NotImplementedError


def learnt(kind, golden, config, leaf, old, behaviour=None):
    """What a method's own loss is on recorded rows."""
    denoiser = Policies(golden, leaf)
    method = object.__new__(kind)
    method.config, method.problem, method.old = config, SimpleNamespace(adapter=denoiser), old
    x0, noise, t, better = (golden[name] for name in ("x0", "noise", "t", "advantages"))
    rows = Noised(denoiser, x0, noise, noised(FlowPath(), x0, noise, t), t, better)
    # Networks see float32 times; recorded ones are exact.
    denoiser.path.coefficients = lambda at: (1 - t, t) if at.ndim == 1 else (1 - like_rows(t, x0), like_rows(t, x0))
    return method.losses(rows, behaviour)


@pytest.mark.parametrize("golden", [NFT, GRPO, AWM, DPO], ids=["nft", "grpo", "awm", "dpo"])
def test_timesteps(golden):
    """What networks are told for a time."""
    if "timesteps" in golden:
        close(FlowPath().from_timestep(golden["timesteps"]), golden["sigmas"][:-1], 1e-6)
    else:
        close(FlowPath().from_timestep(golden["timestep"]), golden["t"], 1e-6)


@pytest.mark.parametrize("std", ["batch", "prompt"])
@pytest.mark.parametrize(
    ("golden", "prefix"),
    [(NFT, ""), (NFT, "edge_"), (GRPO, ""), (GRPO, "edge_"), (AWM, "")],
    ids=["nft", "nft-edge", "grpo", "grpo-edge", "awm"],
)
def test_advantages(golden, prefix, std):
    found = advantages(golden[f"{prefix}rewards"], golden[f"{prefix}group_ids"], std)
    close(found, golden[f"{prefix}adv_{'global' if std == 'batch' else 'group'}_std"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_without_spread_has_no_advantage(dtype):
    rewards = torch.tensor([0.1, 0.1, 0.1, 5.0, 2.0, 3.0], dtype=dtype)
    found = advantages(rewards, torch.tensor([7, 7, 7, 2, 4, 4]), "batch")
    assert found[:4].tolist() == [0, 0, 0, 0]
    assert found[4] < 0 < found[5]


def test_a_reward_that_is_not_finite_touches_no_other_image():
    rewards, groups = torch.tensor([1.0, 2.0, 3.0, 5.0, torch.nan]), torch.tensor([0, 0, 1, 1, 1])
    found = advantages(rewards, groups)
    torch.testing.assert_close(found[:4], advantages(rewards[:4], groups[:4]))
    assert found[4] == 0


# DiffusionNFT


def nft_losses(v_theta, v_old, r, kl_weight):
    """The published total of velocities, and l of each row."""
    x_t, t = NFT["x_t"], like_rows(NFT["t"], NFT["x_t"])
    rows = nft.nft_loss(x_t - t * v_theta, x_t - t * v_old, NFT["x0"], r, hyper(NFT, "beta"))
    kl = squared_error(v_theta, NFT["v_ref"])
    return hyper(NFT, "adv_clip_max") * rows.mean() + kl_weight * kl.mean(), rows


def test_nft_noised_latents():
    close(noised(FlowPath(), NFT["x0"], NFT["noise"], NFT["t"]), NFT["x_t"])


def test_nft_loss_and_gradients():
    v = NFT["v_theta"].clone().requires_grad_()
    loss, rows = nft_losses(v, NFT["v_old"], NFT["r"], hyper(NFT, "kl_weight"))
    close(rows, NFT["policy_per_sample"])
    close(hyper(NFT, "adv_clip_max") * rows.mean(), NFT["policy_loss"])
    close(squared_error(v, NFT["v_ref"]), NFT["kl_per_sample"])
    close(loss, NFT["loss"])
    gradient_close(loss, v, NFT["grad_v_theta"])


def test_nft_as_the_method_computes_it():
    v = NFT["v_theta"].clone().requires_grad_()
    options = {"beta": "beta", "kl": "kl_weight", "advantage_clip": "adv_clip_max"}
    config = NftConfig(**{ours: hyper(NFT, theirs) for ours, theirs in options.items()})
    found = learnt(nft.Nft, NFT | {"advantages": NFT["adv_global_std"]}, config, v, "v_old")
    close(found["policy"].mean(), NFT["policy_loss"], 1e-6)  # networks get float32 latents
    close(found["kl"].mean(), NFT["kl_loss"])
    close(found["total"].mean(), NFT["loss"], 1e-6)
    gradient_close(found["total"].mean(), v, NFT["grad_v_theta"])


def test_nft_clipped_advantages():
    limit = hyper(NFT, "adv_clip_max")
    close(clipped(NFT["adv_global_std"], limit), NFT["adv_clipped"])
    close(nft.optimality(NFT["adv_clipped"], limit), NFT["r"])


def test_nft_moving_average():
    """The decay that each update of the average has: what is kept of 1 where the parameter is 0."""
    largest = NFT["ema_decay"].max().item()
    for step, expected in zip(NFT["decay_steps"].tolist(), NFT["ema_decay"], strict=True):
        average = Average(largest, {"w": torch.ones((), dtype=torch.float64)})
        average.steps = step
        average.update({"w": torch.zeros((), dtype=torch.float64)})
        close(average.tensors["w"], expected)


def test_nft_gradient_of_a_data_prediction():
    """The same loss of a network that predicts x0; the KL is that of the velocities it implies."""
    x0, t = NFT["x0_theta"].clone().requires_grad_(), like_rows(NFT["t"], NFT["x_t"])
    rows = nft.nft_loss(x0, NFT["x0_old"], NFT["x0"], NFT["r"], hyper(NFT, "beta"))
    kl = squared_error((NFT["x_t"] - x0) / t, (NFT["x_t"] - NFT["x0_ref"]) / t)
    loss = hyper(NFT, "adv_clip_max") * rows.mean() + hyper(NFT, "kl_weight") * kl.mean()
    close(loss, NFT["loss"])
    gradient_close(loss, x0, NFT["grad_x0_theta"])


def test_nft_matching_of_the_implicit_policies():
    for name in ("pos", "neg"):
        close(nft.matching(NFT[f"{name}_x0"], NFT["x0"]), NFT[f"{name}_loss"])
        close(nft.divisor(NFT[f"{name}_x0"] - NFT["x0"]), NFT[f"w_{name}"])


@pytest.mark.parametrize("mode", ["all", "positive_only", "negative_only", "one_only", "binary"])
def test_nft_modes(mode):
    r = nft.optimality(NFT["adv_global_std"], hyper(NFT, "adv_clip_max"), mode.replace("_", "-"))
    close(r, NFT[f"r_{mode}"])
    close(nft_losses(NFT["v_theta"], NFT["v_old"], r, hyper(NFT, "kl_weight"))[0], NFT[f"loss_{mode}"])


def test_nft_on_policy():
    v = NFT["v_old"].clone().requires_grad_()
    loss, _ = nft_losses(v, NFT["v_old"], NFT["r"], 0.0)
    close(loss, NFT["onpolicy_loss"])
    gradient_close(loss, v, NFT["onpolicy_grad_v_theta"])


def test_nft_smallest_divisor():
    v = NFT["floor_v"].clone().requires_grad_()
    loss, _ = nft_losses(v, NFT["floor_v"], NFT["r"], 0.0)
    assert NFT["floor_w_pos"].unique().tolist() == [nft.SMALLEST]
    close(loss, NFT["floor_loss"], 1e-15)
    gradient_close(loss, v, NFT["floor_grad_v_theta"])


@pytest.mark.parametrize(("kind", "schedule"), [(0, "none"), (1, "linear"), (2, "delayed")])
def test_nft_decay_of_the_old_policy(kind, schedule):
    found = [nft.old_decay(schedule, step) for step in NFT["decay_steps"].tolist()]
    close(torch.tensor(found, dtype=torch.float64), NFT[f"decay_type{kind}"])


def test_nft_old_policy_follows():
    decay = nft.old_decay("linear", NFT["param_blend_step"].item())
    close(NFT["param_old"].lerp(NFT["param_theta"], 1 - decay), NFT["param_old_after"])


class Recorded(Denoiser):
    """Gives recorded velocities in turn, and keeps the latents that it is asked about."""

    def __init__(self):
        super().__init__(FlowPath(), Conditioning((Prompt(""),) * 2, {}))
        self.seen = []

    def rows(self, index):
        return self

    def predict(self, x, t):
        velocity, t = NFT["dpm_v"][len(self.seen)], like_rows(t, x)
        self.seen.append(x)
        return Prediction(x - t * velocity, x + (1 - t) * velocity)


@pytest.mark.parametrize(("name", "kind"), [("dpm1", Euler), ("dpm2", DpmSolverPlusPlus2M)])
def test_nft_published_solvers_are_samplers_here(name, kind, monkeypatch):
    monkeypatch.setattr(kind, "knots", lambda self, path: NFT["dpm_sigmas"])
    denoiser, recorded = Recorded(), NFT[f"{name}_latents"]
    last = kind(OdeConfig(steps=len(recorded) - 1)).sample(denoiser, NFT["dpm_x_init"])
    close(torch.stack([*denoiser.seen, last]), recorded, 1e-5)  # denoisers see float32 times


# AWM


def awm_loss(v_theta, v_old, weighting):
    target = AWM["noise"] - AWM["x0"]
    power = hyper(AWM, "ghuber_power")
    new, old = (awm.log_prob(squared_error(v, target), AWM["t"], weighting, power) for v in (v_theta, v_old))
    ratio = torch.exp(new - old)
    return clipped_loss(AWM["adv_used"], ratio, hyper(AWM, "clip_range")), ratio, new, old


def awm_pulls(v_theta, divisor=1.0):
    base, slow = (squared_error(v_theta, AWM[name]) / divisor for name in ("v_ref", "v_ema"))
    return hyper(AWM, "kl_weight") * base.mean() + hyper(AWM, "ema_kl_weight") * slow.mean()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_awm_loss_and_gradients(weighting):
    v = AWM["v_theta"].clone().requires_grad_()
    rows, ratio, new, old = awm_loss(v, AWM["v_old"], weighting)
    close(new, AWM[f"log_prob_theta_{weighting}"])
    close(old, AWM[f"log_prob_old_{weighting}"])
    close(ratio, AWM[f"ratio_{weighting}"])
    close(rows, AWM[f"policy_per_sample_{weighting}"])
    close(rows.mean(), AWM[f"policy_loss_{weighting}"])
    close(rows.mean() + awm_pulls(v), AWM[f"loss_{weighting}"])
    gradient_close(rows.mean(), v, AWM[f"grad_v_theta_policy_{weighting}"])
    gradient_close(rows.mean() + awm_pulls(v), v, AWM[f"grad_v_theta_{weighting}"])


def awm_learnt(leaf, behaviour="v_old", golden=None, **options):
    """The method's own losses, with the recorded hyper-parameters."""
    names = {
        "clip": "clip_range",
        "advantage_clip": "adv_clip_max",
        "advantage_max": "advantage_max",
        "kl": "kl_weight",
        "slow_kl": "ema_kl_weight",
        "power": "ghuber_power",
    }
    config = AwmConfig(**{ours: hyper(AWM, theirs) for ours, theirs in names.items()}, **options)
    golden = golden or AWM | {"advantages": AWM["adv_global_std"]}
    return learnt(awm.Awm, golden, config, leaf, "v_ema", behaviour)


def test_awm_noised_latents():
    close(noised(FlowPath(), AWM["x0"], AWM["noise"], AWM["t"]), AWM["x_t"])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_awm_as_the_method_computes_it(weighting):
    v = AWM["v_theta"].clone().requires_grad_()
    found = awm_learnt(v, weighting=weighting)
    close(found["policy"], AWM[f"policy_per_sample_{weighting}"])
    close(found["ratio"], AWM[f"ratio_{weighting}"])
    close(found["kl"], AWM["kl_per_sample"])
    close(found["slow_kl"], AWM["ema_kl_per_sample"])
    close(found["kl"].mean(), AWM["kl_loss"])
    close(found["slow_kl"].mean(), AWM["ema_kl_loss"])
    close(found["total"].mean(), AWM[f"loss_{weighting}"])
    gradient_close(found["total"].mean(), v, AWM[f"grad_v_theta_{weighting}"])


def test_awm_on_policy_as_the_method_computes_it():
    v = AWM["v_theta"].clone().requires_grad_()
    total = awm_learnt(v, behaviour=None)["total"].mean()
    close(total, AWM["onpolicy_loss"])
    gradient_close(total, v, AWM["onpolicy_grad_v_theta"])


def test_awm_pulls_weighed_as_in_a_bound():
    close(awm.elbo_std(AWM["t"]), AWM["std_elbo"])
    v = AWM["v_theta"].clone().requires_grad_()
    found = awm_learnt(v, kl_form="elbo", slow_kl_form="elbo")
    close(found["kl"].mean(), AWM["kl_loss_elbo"])
    close(found["slow_kl"].mean(), AWM["ema_kl_loss_elbo"])
    close(found["total"].mean(), AWM["loss_elbo"])
    gradient_close(found["total"].mean(), v, AWM["grad_v_theta_elbo"])


def test_awm_on_policy_has_a_gradient_where_the_ratio_is_one():
    v = AWM["v_theta"].clone().requires_grad_()
    rows, ratio, _, _ = awm_loss(v, AWM["v_theta"], "ghuber")
    close(ratio, AWM["onpolicy_ratio"])
    close(rows.mean(), AWM["onpolicy_policy_loss"])
    close(rows.mean() + awm_pulls(v), AWM["onpolicy_loss"])
    gradient_close(rows.mean() + awm_pulls(v), v, AWM["onpolicy_grad_v_theta"])


@pytest.mark.parametrize("order", ["expfirst", "sumfirst"])
def test_awm_several_times_of_one_image(order):
    """A ratio for each time, or one for each image from the mean log-probability over its times; the file has all
    images at the first time, then at the next, and each image has one advantage."""
    times, v = AWM["sumfirst_num_timesteps"].item(), AWM["v_theta"].clone().requires_grad_()
    images = len(v) // times
    mine = torch.arange(len(v)).view(times, images).T.flatten()
    better = AWM["adv_global_std"][:images].repeat_interleave(times)
    golden = {k: AWM[k][mine] for k in ("x0", "noise", "t", "v_old", "v_ref", "v_ema")} | {"advantages": better}
    form = {"ratio": "image", "times": times, "grid": 1000} if order == "sumfirst" else {"ratio": "time"}
    found = awm_learnt(v[mine], golden=golden, **form)
    ratio = found["ratio"] if order == "sumfirst" else found["ratio"].view(images, times).T.flatten()
    close(ratio, AWM[f"{order}_ratio"])
    close(found["policy"].mean(), AWM[f"{order}_policy_loss"])
    total = found["total"].mean()
    close(total, AWM[f"{order}_loss"])
    gradient_close(total, v, AWM[f"{order}_grad_v_theta"])


def test_awm_advantages_and_decay():
    used = awm.scaled_advantages(AWM["adv_global_std"], hyper(AWM, "adv_clip_max"), hyper(AWM, "advantage_max"))
    close(used, AWM["adv_used"])
    largest = AWM["ema_policy_decay"].max().item()
    found = [awm.slow_decay(step, largest) for step in AWM["decay_steps"].tolist()]
    close(torch.tensor(found, dtype=torch.float64), AWM["ema_policy_decay"])


@pytest.mark.parametrize(("name", "first"), [("tidx_discrete", 0), ("tidx_discrete_wo_init", 1)])
def test_awm_times(name, first):
    steps, fraction = AWM["tidx_num_steps"].item(), AWM["tidx_fraction"].item()
    assert torch.equal(stratified(AWM[f"{name}_u"], steps, fraction, first), AWM[name])


# Flow-GRPO


def grpo_transition(velocity):
    """Mean and std of the recorded steps under a velocity, by the sampler that users name."""
    path, x = FlowPath(), GRPO["x_t"]
    t = like_rows(GRPO["sigmas"][GRPO["step_index"]], x)
    s = like_rows(GRPO["sigmas"][GRPO["step_index"] + 1], x)
    sampler = FlowSde(FlowSdeConfig(noise=hyper(GRPO, "noise_level")))
    return sampler.transition(path, x, Prediction(x - t * velocity, x + (1 - t) * velocity), t, s)


def test_grpo_steps_and_log_probabilities():
    for name in ("theta", "old", "ref"):
        close(grpo_transition(GRPO[f"v_{name}"])[0], GRPO[f"mean_{name}"])
    mean, std = grpo_transition(GRPO["v_old"])
    close(std.flatten(), GRPO["std"])
    close(std.flatten() / (-GRPO["dt"]).sqrt(), GRPO["std_dev_t"])
    close(mean + std * GRPO["step_noise"], GRPO["next_sample"])
    close(log_prob(GRPO["next_sample"], mean, std), GRPO["log_prob_old"], CONSTANT)


def test_grpo_loss_and_gradients():
    v = GRPO["v_theta"].clone().requires_grad_()
    mean, std = grpo_transition(v)
    new = log_prob(GRPO["next_sample"], mean, std)
    close(new, GRPO["log_prob_theta"], CONSTANT)
    ratio = torch.exp(new - log_prob(GRPO["next_sample"], *grpo_transition(GRPO["v_old"])))
    close(ratio, GRPO["ratio"])
    rows = clipped_loss(GRPO["adv_clipped"], ratio, hyper(GRPO, "clip_range"))
    close(rows, GRPO["policy_per_sample"])
    close(rows.mean(), GRPO["policy_loss"])
    gradient_close(rows.mean(), v, GRPO["grad_v_theta_policy"])
    a, clip = GRPO["adv_clipped"], hyper(GRPO, "clip_range")
    close(clipped_loss(a, ratio, math.inf), GRPO["unclipped"])
    close(clipped_loss(a, ratio.clamp(1 - clip, 1 + clip), math.inf), GRPO["clipped"])
    found = grpo.moved(new - GRPO["log_prob_old"], ratio, clip)
    close(found["clipped"].mean(), GRPO["clip_frac"])
    close(found["approx_kl"].mean(), GRPO["approx_kl"], CONSTANT)

    reference = grpo_transition(GRPO["v_ref"])[0]
    published, exact = (grpo.kl(mean, reference, std, -GRPO["dt"], form) for form in ("published", "exact"))
    close(published, GRPO["kl_upstream_per_sample"])
    close(published.mean(), GRPO["kl_loss"])
    close(exact, GRPO["kl_exact_per_sample"])
    close(exact, divergence(mean, reference, std))
    close(rows.mean() + hyper(GRPO, "kl_weight") * exact.mean(), GRPO["loss_kl_exact"])
    loss = rows.mean() + hyper(GRPO, "kl_weight") * published.mean()
    close(loss, GRPO["loss"])
    gradient_close(loss, v, GRPO["grad_v_theta"])


def test_grpo_centred_ratio():
    mean, std = grpo_transition(GRPO["v_theta"])
    change = GRPO["log_prob_theta"] - GRPO["log_prob_old"]
    close(torch.exp(grpo.log_ratio(change, mean, GRPO["mean_old"], std, "guard")), GRPO["guard_ratio"])


def test_grpo_distance_of_velocities():
    x, t = GRPO["x_t"], like_rows(GRPO["sigmas"][GRPO["step_index"]], GRPO["x_t"])
    theta, base = (Prediction(x - t * GRPO[name], x + (1 - t) * GRPO[name]) for name in ("v_theta", "v_ref"))
    close(distance(FlowPath(), theta, base), GRPO["kl_v_per_sample"])


@pytest.mark.parametrize("form", ["cps", "dance"])
def test_grpo_other_steps(form):
    path, x, level = FlowPath(), GRPO["x_t"], hyper(GRPO, "noise_level")
    t, s = (like_rows(GRPO["sigmas"][GRPO["step_index"] + more], x) for more in (0, 1))
    sampler = FlowSde(FlowSdeConfig(noise=level, form=form))

    def transition(velocity):
        prediction = Prediction(x - t * velocity, x + (1 - t) * velocity)
        return sampler.transition(path, x, prediction, t, s)

    mean, std = transition(GRPO["v_old"])
    following = mean + std * GRPO["step_noise"]
    close(following, GRPO[f"{form}_next_sample"])
    close(transition(GRPO["v_theta"])[0], GRPO[f"{form}_mean_theta"])
    for name in ("old", "theta"):
        mean, std = transition(GRPO[f"v_{name}"])
        if form == "cps":
            close(std.flatten(), GRPO["cps_std"])
            close(-squared_error(following, mean), GRPO[f"cps_log_prob_{name}"])
        else:
            close(log_prob(following, mean, std), GRPO[f"dance_log_prob_{name}"], CONSTANT)


def test_grpo_ode_steps_outside_the_window():
    x, index = GRPO["x_t"], GRPO["step_index"]
    path = FlowPath()
    path.grid = lambda _steps: GRPO["sigmas"]
    t, s = (like_rows(GRPO["sigmas"][index + more], x) for more in (0, 1))
    velocity = GRPO["v_theta"]
    prediction = Prediction(x - t * velocity, x + (1 - t) * velocity)
    inner = FlowSde(FlowSdeConfig(noise=hyper(GRPO, "noise_level")))
    start, stop = (index.unique()[i].item() for i in (1, -1))
    mean, std = Windowed(inner, start, stop).transition(path, x, prediction, t, s)
    inside = (index >= start) & (index < stop)
    assert inside.any() and not inside.all()  # noqa: PT018
    close(mean[~inside], GRPO["ode_next_theta"][~inside])
    close(mean[inside], GRPO["mean_theta"][inside])
    close(std.flatten(), torch.where(inside, GRPO["std"], 0.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("overlap", {}),
        ("jump", {"window_stride": GRPO["win_size"].item()}),
        ("clip", {}),
        ("decay", {"window_every": 5, "window_decay": "linear"}),
        ("expdecay", {"window_decay": "exponential", "window_decay_rate": 0.4, "window_decay_from": 2}),
    ],
)
def test_grpo_sliding_windows(name, options):
    """As published until it comes to an empty window, in which nothing would be learnt; here it begins again."""
    size, end, every = (GRPO[f"win_{key}"].item() for key in ("size", "max_timesteps", "iters_per_group"))
    config = FlowGrpoConfig(**{"window": size, "window_every": every, **options})
    starts = [window_start(config, index, end, 0) for index in range(len(GRPO[f"win_{name}_start"]))]
    lengths = [min(start + size, end) - start for start in starts]
    full = (GRPO[f"win_{name}_len"] == 0).nonzero()[0, 0]
    assert starts[:full] == GRPO[f"win_{name}_start"][:full].tolist()
    assert lengths[:full] == GRPO[f"win_{name}_len"][:full].tolist()
    assert starts[full] == 0
    assert min(lengths) > 0


def test_grpo_advantages_are_clipped():
    close(clipped(GRPO["adv_global_std"], hyper(GRPO, "adv_clip_max")), GRPO["adv_clipped"])


# Online DPO


def test_dpo_pairs():
    win, lose = online_dpo.best_against_worst(DPO["rewards"], DPO["group_ids"])
    assert torch.equal(win, DPO["pair_win"])
    assert torch.equal(lose, DPO["pair_lose"])
    labels = torch.zeros(len(DPO["rewards"])).index_fill(0, win, 1).index_fill(0, lose, -1)
    spread = advantages(DPO["rewards"], DPO["group_ids"]) != 0  # the published code pairs equals, too
    groups = torch.isin(DPO["group_ids"], DPO["group_ids"][spread])
    close(labels[groups], DPO["upstream_label"][groups])
    assert not labels[~groups].any()


def test_dpo_pairs_leave_out_what_is_not_finite():
    rewards, groups = torch.tensor([torch.nan, 1.0, 2.0, torch.inf, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    win, lose = online_dpo.best_against_worst(rewards, groups)
    assert (win.tolist(), lose.tolist()) == ([2], [1])


def test_dpo_loss_and_gradients():
    beta = hyper(DPO, "beta")
    leaves = {side: DPO[f"v_theta_{side}"].clone().requires_grad_() for side in ("win", "lose")}
    rewards = {}
    for side, v in leaves.items():
        error, reference = (squared_error(p, DPO[f"target_{side}"]) for p in (v, DPO[f"v_ref_{side}"]))
        close(error, DPO[f"err_theta_{side}"])
        close(reference, DPO[f"err_ref_{side}"])
        rewards[side] = online_dpo.implicit_reward(error, reference, beta)
        close(rewards[side], DPO[f"implicit_reward_{side}"])
        close(online_dpo.implicit_reward(error, reference, -2.0), DPO[f"{side}_diff"])
    close(rewards["win"] - rewards["lose"], DPO["inside"])
    rows = online_dpo.dpo_loss(rewards["win"], rewards["lose"])
    close(rows, DPO["loss_per_pair"])
    close(rows.mean(), DPO["loss"])
    for side, v in leaves.items():
        gradient_close(rows.mean(), v, DPO[f"grad_v_theta_{side}"])
    close((rewards["win"] > rewards["lose"]).double().mean(), DPO["implicit_acc"])
    close(online_dpo.dpo_loss(torch.zeros(1), torch.zeros(1)), DPO["loss_at_ref"][None], 1e-6)


def test_dpo_on_noise_predictions():
    """A network that predicts eps is compared in eps."""
    rewards = []
    for side in ("win", "lose"):
        x_t, t = DPO[f"x_t_{side}"], like_rows(DPO["t"], DPO[f"x_t_{side}"])
        reference = x_t + (1 - t) * DPO[f"v_ref_{side}"]
        errors = (squared_error(eps, DPO["noise"]) for eps in (DPO[f"eps_theta_{side}"], reference))
        rewards.append(online_dpo.implicit_reward(*errors, hyper(DPO, "beta")))
    close(online_dpo.dpo_loss(*rewards).mean(), DPO["loss_eps"])


def test_dpo_on_data_predictions():
    """A network that predicts x0 is compared in the velocity that it implies."""
    path, rewards = FlowPath(), []
    for side in ("win", "lose"):
        x_t, t = DPO[f"x_t_{side}"], like_rows(DPO["t"], DPO[f"x_t_{side}"])
        theta = along(path, x_t, DPO["t"], DPO[f"v_theta_{side}"])
        close(theta.x0, DPO[f"x0_theta_{side}"])
        close(theta.eps, DPO[f"eps_theta_{side}"])
        x0 = DPO[f"x0_theta_{side}"]
        implied = path.direction(Prediction(x0, (x_t - (1 - t) * x0) / t))
        errors = (squared_error(v, DPO[f"target_{side}"]) for v in (implied, DPO[f"v_ref_{side}"]))
        rewards.append(online_dpo.implicit_reward(*errors, hyper(DPO, "beta")))
    close(online_dpo.dpo_loss(*rewards), DPO["loss_per_pair"])


def test_dpo_noised_pairs_and_times():
    for side in ("win", "lose"):
        close(noised(FlowPath(), DPO["x0"][DPO[f"pair_{side}"]], DPO["noise"], DPO["t"]), DPO[f"x_t_{side}"])
    assert torch.equal((DPO["logit_u"] * 1000).floor().long(), DPO["logit_index"])
    close(online_dpo.shifted_time(DPO["logit_u"].double(), 3.0), DPO["t"], 1e-6)
