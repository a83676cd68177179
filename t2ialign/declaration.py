"""What a plugin registers: a part, declared by its kind, its class, its options and its capabilities. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from t2ialign.config import Config, Requirements
from t2ialign.config import Config as BaseConfig

if TYPE_CHECKING:
    import torch

ROLES = ("backend", "sampler", "reward", "optimizer")


class Part:
    """Base of everything that a plugin registers: its validated options and the device it works on."""

    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init__(self, config: BaseConfig, device: torch.device | str = "cpu") -> None:
        import torch

        self.config: Any = config
        self.device = torch.device(device)


@dataclass(frozen=True)
class Declaration:
    """One registered part. ``target`` is a class, or "package.module:Class" that is imported on ``load()``."""

    role: str
    kind: str
    target: type | str
    config: type[Config]
    summary: str
    provides: frozenset[str]
    requires: Requirements
    distribution: str
    version: str

    def load(self) -> type:
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def declare(
    role: str,
    kind: str,
    target: type | str,
    config: type[Config] | None = None,
    summary: str | None = None,
    provides: Iterable[str] = (),
    requires: Requirements | None = None,
    distribution: str = "",
    version: str = "",
) -> Declaration:
    """Check one registration.

    Raises:
        TypeError: a lazy target without config or summary, or a target that is neither class nor "module:Class".
    """
    where = f"{role} '{kind}'"
    if isinstance(target, str):
        if ":" not in target:
            raise TypeError(f"{where}: target '{target}' must be a class or 'package.module:Class'")
        if config is None or summary is None:
            raise TypeError(f"{where}: a lazy target needs config= and summary=")
        words = set(provides)
    elif isinstance(target, type):
        config = config or getattr(target, "Config", Config)
        summary = summary or (target.__doc__ or kind).strip().splitlines()[0]
        flags = {"differentiable": "differentiable", "per_prompt": "per-prompt"}
        words = set(provides) | {word for flag, word in flags.items() if getattr(target, flag, False) is True}
    else:
        raise TypeError(f"{where}: target must be a class or 'package.module:Class', not {type(target).__name__}")
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise TypeError(f"{where}: config must subclass t2ialign.Config")
    return Declaration(role, kind, target, config, summary, frozenset(words), requires or {}, distribution, version)
