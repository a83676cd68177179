"""Evolution strategies in five minutes: train any torch module against any number.

pip install t2ialign-eggroll
python examples/es_tour.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from t2ialign_eggroll import EggrollTrainer

torch.manual_seed(0)
x = torch.linspace(-3, 3, 128)[:, None]
y = torch.sin(2 * x)
model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


# 1. A fitness is a function of the model that returns a number; higher is better. No gradient is ever taken.
def fitness(network: nn.Module) -> torch.Tensor:
    return -F.mse_loss(network(x), y)


# 2. One call trains; noise and steps are in units of the weights and need no tuning. With batched=True the whole
#    population goes through one forward: the product with each large weight matrix is shared by all members.
print("before: mse", -fitness(model).item())
trainer = EggrollTrainer(model, fitness, population_size=128, batched=True, seed=0)
trainer.train(
    100, callback=lambda line: line["generation"] % 25 == 0 and print("  members' mse", -line["mean_fitness"])
)
print("after 100 generations: mse", -fitness(model).item())

# 3. The pseudo-gradient goes through any torch optimizer, and its learning rate through any scheduler; a rate or an
#    optimizer of your own means absolute values, sigma's too.
trainer = EggrollTrainer(
    model,
    fitness,
    population_size=128,
    sigma=0.02,
    shaping="centred-rank",
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    batched=True,
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, 150)
for _ in range(150):
    trainer.step()
    scheduler.step()
print("after Adam with cosine decay: mse", -fitness(model).item())


# 4. A black box may do anything: leave torch, call a simulator, ask a person. Then members are scored one by one.
def rough_fitness(network: nn.Module) -> float:
    return -float(abs((network(x) - y).numpy()).max())  # the largest error, computed elsewhere


trainer = EggrollTrainer(model, rough_fitness, population_size=32, sigma=0.01, learning_rate=0.2)
trainer.train(20)

# 5. The best member is really the member that scored best; the state resumes exactly.
print("best member's largest error", -trainer.best_fitness)
state = trainer.state_dict()
model.load_state_dict(trainer.best_parameters)
trainer.load_state_dict(state)  # back at the centre, with the history so far
print(len(trainer.history), "generations")
