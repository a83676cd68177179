"""What the tests of a plugin use, from pytest or without it.

check_reward, check_backend, check_sampler, check_optimizer     contract tests: AssertionError in one sentence
toy                                                             the smallest complete part of every kind
run_spec, write_spec, installed, entry_point                    a world in which a spec runs in a second
"""

from t2ialign.testing import toy
from t2ialign.testing.backends import check_backend
from t2ialign.testing.optimizers import check_optimizer
from t2ialign.testing.rewards import check_reward
from t2ialign.testing.samplers import check_sampler
from t2ialign.testing.world import entry_point, installed, run_spec, write_spec

__all__ = [
    "check_backend",
    "check_optimizer",
    "check_reward",
    "check_sampler",
    "entry_point",
    "installed",
    "run_spec",
    "toy",
    "write_spec",
]
