"""The four hooks. A plugin implements any of them with ``@t2ialign.hookimpl``.

Every hook receives one callable, ``register``, and calls it once for each part that the plugin offers::

    register(kind, target, config=None, summary=None, provides=(), requires=None)

    kind      the word that a spec uses: ``kind = "pickscore"``
    target    the class, or "package.module:Class" so that the import waits until a run needs it
    config    the pydantic class of the part's table; default: the class's inner ``Config``
    summary   one line for ``t2ialign plugins``; default: the first line of the class's docstring
    provides  capability words, see ``t2ialign.parts``; ``differentiable`` is added for a class that says so
    requires  what the other parts of a spec must provide: {"backend": {"lora"}, "reward": {"differentiable"}}

With a "package.module:Class" target, ``config`` and ``summary`` must be given, since nothing is imported to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

PROJECT = "t2ialign"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., Any]


@hookspec
def t2ialign_backends(register: Register) -> None:
    """Register frozen text-to-image models (subclasses of ``t2ialign.Backend``)."""


@hookspec
def t2ialign_samplers(register: Register) -> None:
    """Register ways from noise to latents (subclasses of ``t2ialign.Sampler``)."""


@hookspec
def t2ialign_rewards(register: Register) -> None:
    """Register scores of images (subclasses of ``t2ialign.Reward``)."""


@hookspec
def t2ialign_optimizers(register: Register) -> None:
    """Register alignment algorithms (subclasses of ``t2ialign.Optimizer``)."""
