import pytest
import torch
from torch import nn

from t2ialign.tensors import solver_state


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_solver_goes_on_where_the_saved_one_stopped(kind):
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}

    def start():
        parameters = {"a.lora_A.weight": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(2, 2))}
        return parameters, kind(list(parameters.values()), **options)

    def step(parameters, solver):
        solver.zero_grad()
        sum(p.square().sum() for p in parameters.values()).backward()
        solver.step()

    whole, solver = start()
    for _ in range(4):
        step(whole, solver)

    first, solver = start()
    for _ in range(2):
        step(first, solver)
    saved = solver_state.pack(solver, first) | {"b": first["b"].detach()}
    second, solver = start()
    for name, parameter in second.items():
        parameter.data.copy_(first[name])
    solver_state.unpack(solver, second, saved)
    for _ in range(2):
        step(second, solver)
    for name, parameter in second.items():
        assert torch.equal(parameter, whole[name])
