"""The batched population against upstream's member-by-member evaluation and against peft itself."""

import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from t2ialign import UsageError
from t2ialign.tensors import rows
from t2ialign_eggroll import population, stacks
from t2ialign_eggroll.noise import LowRank, Members, Noise
from t2ialign_eggroll.population import Chunk, lora_population

FORMS = ["auto", "materialised", "factored", "merged"]


class Tower(nn.Module):
    """A linear layer, a 3x3 and a 1x1 convolution, each adapted."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 5)
        self.wide = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.point = nn.Conv2d(4, 7, 1, bias=False)
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["linear", "wide", "point"]), self)
        self.to(dtype)
        for name, parameter in self.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)

    def layers(self):
        return {name: getattr(self, name) for name in ("linear", "wide", "point")}

    def factors(self):
        return {
            f"{name}.lora_{side}.weight": getattr(layer, f"lora_{side}")["default"].weight
            for name, layer in self.layers().items()
            for side in "AB"
        }

    def forward(self, x, image):
        return self.linear(x), self.point(self.wide(image))


def draw(tower, members, names=None, sigma=0.1, rank=1, step=0):
    names = names or tower.factors()
    shapes = {name: tower.factors()[name].shape for name in names}
    drawn = Members(members).draw(Noise(shapes, rank).of(0, step), slice(0, members))
    scaled = {name: e.select(torch.arange(members), torch.full((members,), sigma)) for name, e in drawn.items()}
    dtype = next(iter(tower.factors().values())).dtype
    return {
        n: type(e)(**{k: v.to(dtype) if torch.is_tensor(v) else v for k, v in vars(e).items()})
        for n, e in scaled.items()
    }


def one_by_one(tower, noise, run):
    """peft's own forward with each member's weights set in turn."""
    outputs = []
    for member in range(len(next(iter(noise.values())).dense())):
        kept = {name: p.data for name, p in tower.factors().items()}
        for name, e in noise.items():
            tower.factors()[name].data = kept[name] + e.dense()[member]
        outputs.append(run(member))
        for name, p in tower.factors().items():
            p.data = kept[name]
    return outputs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["r2_k1", "r4_k2_plain"])
@torch.no_grad()
def test_golden_layer(golden, case, form):
    block = golden(f"batched/{case}")
    (out, inner), rank = block["weight"].shape, len(block["lora_A"])
    host = nn.ModuleDict({"layer": nn.Linear(inner, out, bias="bias" in block)}).double()
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=block["scaling"].item() * rank, target_modules=["layer"]), host
    )
    layer = host["layer"]
    layer.base_layer.weight.copy_(block["weight"])
    if "bias" in block:
        layer.base_layer.bias.copy_(block["bias"])
    layer.lora_A["default"].weight.data = block["lora_A"]
    layer.lora_B["default"].weight.data = block["lora_B"]
    noise = {}
    for side in "AB":
        u, v = block[f"U_{side}"], block[f"V_{side}"]
        stack = LowRank(u / math.sqrt(u.shape[-1]), v, torch.Size((u.shape[1], v.shape[1])))
        noise[f"layer.lora_{side}.weight"] = stack.select(block["index"], block["sign"] * block["sigma"])
    members = len(block["index"])
    dense = torch.cat([noise[f"layer.lora_{side}.weight"].dense().flatten(1) for side in "AB"], 1)
    torch.testing.assert_close(dense, block["sigma"] * block["eps"], rtol=1e-9, atol=1e-9)
    with lora_population({"layer": layer}, noise, Chunk(members, 1), form):
        torch.testing.assert_close(layer(block["x"]), block["y"], rtol=1e-9, atol=1e-9)
        shared = block["x_shared"].expand(members, -1, -1)
        torch.testing.assert_close(layer(shared), block["y_shared"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 3, None])
@pytest.mark.parametrize("side", ["AB", "B"])
@torch.no_grad()
def test_every_image_goes_through_its_members_weights(form, rank, side):
    tower, members, images = Tower(), 5, 2
    noise = draw(tower, members, [n for n in tower.factors() if n[-8] in side], rank=rank)
    x, picture = torch.randn(10, 4, 6).double(), torch.randn(10, 3, 8, 8).double()
    with lora_population(tower.layers(), noise, Chunk(members, images), form):
        found = tower(x, picture)
    single = one_by_one(tower, noise, lambda i: tower(x[2 * i : 2 * i + 2], picture[2 * i : 2 * i + 2]))
    for part in range(2):
        torch.testing.assert_close(found[part], torch.cat([outputs[part] for outputs in single]))


@pytest.mark.parametrize(
    ("budget", "materialises"), [(2 * 8 * (12 + 10) * 8, True), (2 * 8 * (12 + 10) * 8 - 1, False)]
)
@torch.no_grad()
def test_auto_stacks_no_factors_beyond_its_memory(monkeypatch, budget, materialises):
    """r (in + out) numbers of 8 bytes for each of 8 members: up to the budget they are formed, beyond it never."""
    members, formed = 8, []
    original = stacks._form
    monkeypatch.setattr(stacks, "_form", lambda *given: formed.append(1) or original(*given))
    monkeypatch.setattr(population, "STACK_BYTES", budget)
    layer = nn.ModuleDict({"layer": nn.Linear(12, 10)}).double()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["layer"]), layer)
    shapes = {"layer.lora_A.weight": (2, 12), "layer.lora_B.weight": (10, 2)}
    noise = Members(members).draw(Noise(shapes).of(0, 0), slice(0, members))
    noise = {name: e.to(torch.float64) for name, e in noise.items()}
    x = torch.randn(members, 1, 12).double()
    with lora_population({"layer": layer["layer"]}, noise, Chunk(members, 1)):
        found = layer["layer"](x)
    assert bool(formed) == materialises
    with lora_population({"layer": layer["layer"]}, noise, Chunk(members, 1), "materialised"):
        torch.testing.assert_close(found, layer["layer"](x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copies", [1, 2])
@torch.no_grad()
def test_how_the_rows_lie_in_memory_makes_no_difference(form, copies):
    tower = Tower()
    x = torch.randn(6 * copies, 6, 4).double().mT
    with lora_population(tower.layers(), draw(tower, 3), Chunk(3, 2), form):
        torch.testing.assert_close(tower.linear(x), tower.linear(x.contiguous()))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_guidance_copies_of_the_batch(form):
    tower = Tower()
    noise = draw(tower, 3)
    x, picture = torch.randn(6, 6).double(), torch.randn(6, 3, 8, 8).double()
    with lora_population(tower.layers(), noise, Chunk(3, 2), form):
        once = tower(x, picture)
        twice = tower(torch.cat([x, -x]), torch.cat([picture, -picture]))
        flipped = tower(-x, -picture)
    for part in range(2):
        torch.testing.assert_close(twice[part], torch.cat([once[part], flipped[part]]))


@torch.no_grad()
def test_announced_rows_in_any_order():
    tower = Tower()
    noise = draw(tower, 3)
    index = torch.tensor([5, 0, 0, 3, 1, 2, 4, 4, 4])
    tokens = torch.randn(9, 6).double()
    with lora_population(tower.layers(), noise, Chunk(3, 2)), rows.announce(index):
        packed = tower.linear(tokens)
        with pytest.raises(UsageError, match="'linear' sees 4 rows where 9"):
            tower.linear(tokens[:4])
    expected = one_by_one(tower, noise, lambda i: tower.linear(tokens[index // 2 == i]))
    for member in range(3):
        torch.testing.assert_close(packed[index // 2 == member], expected[member])


@torch.no_grad()
def test_rows_that_belong_to_no_image_are_refused():
    tower = Tower()
    batch = lora_population(tower.layers(), draw(tower, 3), Chunk(3, 2))
    with batch, pytest.raises(UsageError, match="'linear' sees 7 rows for a batch of 6 images"):
        tower.linear(torch.randn(7, 6).double())


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_parameters_and_forwards_are_untouched_afterwards(form):
    tower = Tower()
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    x, picture = torch.randn(6, 6).double(), torch.randn(6, 3, 8, 8).double()
    centre = tower(x, picture)
    with lora_population(tower.layers(), draw(tower, 3), Chunk(3, 2), form):
        assert not torch.equal(tower(x, picture)[0], centre[0])
    for name, p in tower.named_parameters():
        assert torch.equal(p, before[name])
    after = tower(x, picture)
    assert torch.equal(centre[0], after[0])
    assert torch.equal(centre[1], after[1])


@torch.no_grad()
def test_a_compiled_network_sees_every_population_and_stops_compiling():
    """New noise compiles nothing, a new number of members once more."""
    tower, graphs = Tower(), []
    layers = {"linear": tower.linear}
    names = [name for name in tower.factors() if name.startswith("linear")]

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(tower.linear.__call__, backend=count, fullgraph=True)
    for step, members in enumerate((4, 4, 3, 4, 2, 3)):
        x = torch.randn(2 * members, 6).double()
        with lora_population(layers, draw(tower, members, names, step=step), Chunk(members, 2)):
            torch.testing.assert_close(compiled(x), tower.linear(x))
    assert len(graphs) == 3
    torch.testing.assert_close(compiled(x), tower.linear(x))  # outside, the layer is its own again


@torch.no_grad()
def test_compiled_convolutions_see_every_population():
    tower = Tower()
    torch.compiler.reset()
    compiled = torch.compile(tower.forward, backend="eager", fullgraph=True)
    for members in (2, 3):
        x, picture = torch.randn(members, 6).double(), torch.randn(members, 3, 8, 8).double()
        with lora_population(tower.layers(), draw(tower, members), Chunk(members, 1)):
            torch.testing.assert_close(compiled(x, picture), tower(x, picture))


@torch.no_grad()
def test_noise_is_added_before_the_cast_to_a_16_bit_network():
    """A perturbation far below bfloat16's resolution of A still moves B A x."""
    tower = Tower(torch.float32)
    for layer in tower.layers().values():
        layer.base_layer.bfloat16()
    noise = draw(tower, 2, ["linear.lora_B.weight"], sigma=0.02)
    x = torch.randn(2, 6).bfloat16()
    with lora_population(tower.layers(), noise, Chunk(2, 1)):
        found = tower.linear(x)
    assert found.dtype == torch.bfloat16
    expected = torch.cat(one_by_one(tower, noise, lambda i: tower.linear(x[i : i + 1])))
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)


def test_a_second_active_adapter_is_refused():
    tower = Tower()
    tower.linear.update_layer("second", 1, lora_alpha=1, config=LoraConfig(r=1))
    tower.linear.set_adapter(["default", "second"])
    with (
        pytest.raises(UsageError, match="'linear' needs exactly one plain LoRA"),
        lora_population(tower.layers(), {}, Chunk(1, 1)),
    ):
        pass


#: They move no numbers.
FREE = {"view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "split", "empty", "detach"}
FREE |= {"as_strided", "alias", "split_with_sizes", "reshape", "permute", "lift_fresh"}


class Counted(TorchDispatchMode):
    """Names of the operations that a device would start."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        self.names += [name] * (name not in FREE)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("side", ["AB", "B"])
@torch.no_grad()
def test_a_member_costs_two_operations_a_layer_and_a_few_for_all_layers_together(side, copies):
    """However many layers: what does not depend on the activations is made once per batch for all of one shape."""
    depth, members = 12, 4
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[str(n) for n in range(depth)]), network)
    network.bfloat16()
    layers = {str(n): layer for n, layer in enumerate(network)}
    shapes = {f"{n}.lora_{s}.weight": (2, 8) if s == "A" else (8, 2) for n in layers for s in side}
    source = Noise(shapes)
    x = torch.randn(copies * members, 3, 8).bfloat16()
    Members(members).draw(source.of(0, 0), slice(0, members), sigma=dict.fromkeys(shapes, 0.1))  # fills its tables
    with Counted() as drawing:
        noise = Members(members).draw(source.of(0, 1), slice(0, members), sigma=dict.fromkeys(shapes, 0.1))
    noise = {name: e.to(torch.bfloat16) for name, e in noise.items()}
    assert len(drawing.names) <= members + 12, drawing.names
    with lora_population(layers, noise, Chunk(members, 1)):
        with Counted() as first:
            network(x)
        with Counted() as again:
            network(x)
    assert len(again.names) == 3 * depth, again.names
    assert len(first.names) <= 3 * depth + 14, first.names
