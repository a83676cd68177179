"""What a plugin registers: a part, declared by its kind, its class, its options and its capabilities. No torch."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from t2ialign.config import Config as BaseConfig
from t2ialign.config import Requirements, RewardMixConfig
from t2ialign.errors import PartError, blaming

if TYPE_CHECKING:
    import torch

ROLES = ("backend", "sampler", "reward", "optimizer")
KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Part:
    """Base of everything that a plugin registers: its validated options and the device it works on.

    Attributes:
        label: what messages call it: role, kind and package.
    """

    #: One of ``ROLES``; set by the base class of each.
    role: ClassVar[str] = ""
    #: What the class requires of the other parts, whatever is registered.
    needs: ClassVar[Requirements] = {}
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init__(self, config: BaseConfig, device: torch.device | str = "cpu") -> None:
        import torch

        self.config: Any = config
        self.device = torch.device(device)

    @property
    def label(self) -> str:
        # Read while errors are named, also of parts whose author forgot ``super().__init__``.
        return self.__dict__.get("label") or f"{self.role} '{type(self).__name__}'"

    @label.setter
    def label(self, name: str) -> None:
        self.__dict__["label"] = name


@dataclass(frozen=True)
class Declaration:
    """One registered part. ``target`` is a class, or "package.module:Class" that is imported on ``load()``."""

    role: str
    kind: str
    target: type | str
    config: type[BaseConfig]
    summary: str
    provides: frozenset[str]
    requires: Requirements
    distribution: str
    version: str

    @property
    def label(self) -> str:
        return f"{self.role} '{self.kind}' ({self.distribution} {self.version})"

    def load(self) -> type:
        """The class.

        Raises:
            PartError: there is none, or it is no complete part of this role.
        """
        if not isinstance(self.target, str):
            return self.target
        if missing := self.missing():
            raise PartError(f"{self.label}: {missing}")
        module, _, name = self.target.partition(":")
        with blaming(self.label):
            target = getattr(importlib.import_module(module), name)
        if wrong := wrong_class(self.role, target):
            raise PartError(f"{self.label}: {wrong}")
        return target

    def missing(self) -> str:
        """What is wrong with a lazy target, as far as its source tells without importing it; empty if nothing is."""
        if not isinstance(self.target, str):
            return ""
        module, _, name = self.target.partition(":")
        where = f"target '{self.target}'"
        try:
            spec = importlib.util.find_spec(module)  # imports the packages above it
        except ModuleNotFoundError:
            spec = None
        except Exception as error:
            return f"{where}: {type(error).__name__}: {error}"
        if spec is None:
            return f"{where}: there is no module '{module}'"
        source = Path(spec.origin) if spec.origin else None
        if not (source and source.suffix == ".py"):
            return ""
        text = source.read_bytes()
        if re.search(rb"^class %b\b" % name.encode(), text, re.MULTILINE):  # the usual case, without parsing
            return ""
        try:
            names = _bound(ast.parse(text))
        except SyntaxError as error:
            return f"{where}: line {error.lineno} of the module is no Python"
        return "" if names & {name, "*", "__getattr__"} else f"{where}: the module has no '{name}'"


def _bound(tree: ast.Module) -> set[str]:
    """Every name that a module's code binds, also below ``if`` and ``try``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def wrong_class(role: str, target: Any) -> str:
    """Why a class cannot be a part of this role; empty if it can."""
    if not (isinstance(target, type) and issubclass(target, Part)):
        return f"'{getattr(target, '__name__', target)}' must subclass t2ialign.{role.capitalize()}"
    if target.role != role:
        return f"'{target.__name__}' is a {target.role or 'part without a role'}, registered as {role}"
    if abstract := sorted(getattr(target, "__abstractmethods__", ())):
        return f"'{target.__name__}' lacks the method{'s' * (len(abstract) > 1)} {', '.join(abstract)}"
    return ""


def declare(
    role: str,
    kind: str,
    target: type | str,
    config: type[BaseConfig] | None = None,
    summary: str | None = None,
    provides: Iterable[str] = (),
    requires: Mapping[str, Iterable[str]] | None = None,
    distribution: str = "",
    version: str = "",
) -> Declaration:
    """Check one registration.

    Raises:
        TypeError: it breaks a rule; the message says which.
    """
    if not (isinstance(kind, str) and KIND.fullmatch(kind)):
        raise TypeError(f"{role}: kind {kind!r} must be a word of lower-case letters, digits and hyphens")
    where = f"{role} '{kind}'"
    words = checked_words(f"{where}: provides", provides)
    needs = checked_requirements(where, requires or {})
    if isinstance(target, str):
        if not TARGET.fullmatch(target):
            raise TypeError(f"{where}: target '{target}' must be a class or 'package.module:Class'")
        if config is None or summary is None:
            raise TypeError(f"{where}: a lazy target needs config= and summary=")
    elif isinstance(target, type):
        if wrong := wrong_class(role, target):
            raise TypeError(f"{where}: {wrong}")
        config = config or getattr(target, "Config", BaseConfig)
        summary = summary or (target.__doc__ or kind).strip().splitlines()[0]
        flags = {"differentiable": "differentiable", "per_prompt": "per-prompt"}
        words |= {word for flag, word in flags.items() if getattr(target, flag, False) is True}
        for other, wanted in getattr(target, "needs", {}).items():
            needs.setdefault(other, set()).update(wanted)
    else:
        raise TypeError(f"{where}: target must be a class or 'package.module:Class', not {type(target).__name__}")
    config = _checked_options(where, role, config)
    return Declaration(role, kind, target, config, summary, frozenset(words), needs, distribution, version)


def checked_words(where: str, words: Any) -> set[str]:
    """Capability words as a set.

    Raises:
        TypeError: they are something else.
    """
    found: list[Any] = list(words) if isinstance(words, Iterable) and not isinstance(words, str) else [None]
    if not all(isinstance(word, str) for word in found):
        raise TypeError(f"{where} must be a set of words, not {words!r}")
    return set(found)


def checked_requirements(where: str, requires: Mapping[str, Iterable[str]]) -> Requirements:
    """
    Raises:
        TypeError: no mapping from roles to words.
    """
    if not isinstance(requires, Mapping):
        raise TypeError(f'{where}: requires must be like {{"backend": {{"lora"}}}}, not {requires!r}')
    if unknown := requires.keys() - set(ROLES):
        raise TypeError(f"{where}: requires names '{min(unknown)}'; roles are {', '.join(ROLES)}")
    return {other: checked_words(f"{where}: requires['{other}']", words) for other, words in requires.items()}


def _checked_options(where: str, role: str, config: Any) -> type[BaseConfig]:
    """Options have the base of their role, leave the core's names alone, and their defaults are valid."""
    base = f"t2ialign.{role.capitalize() if role != 'reward' else ''}Config"
    if not (
        isinstance(config, type)
        and issubclass(config, BaseConfig)
        and config.role == ("" if role == "reward" else role)
    ):
        raise TypeError(f"{where}: its options must subclass {base}")
    core = next(kind for kind in config.__mro__ if kind.__module__.partition(".")[0] == "t2ialign")
    inherited = core.model_fields.keys() if issubclass(core, BaseConfig) else set()
    taken = {"kind", *dir(core), *(RewardMixConfig.model_fields if role == "reward" else ())}
    if clash := sorted(taken & (config.model_fields.keys() - inherited)):
        raise TypeError(f"{where}: the option name '{clash[0]}' is taken; choose another")
    try:
        config.model_validate({})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["loc"] and detail["type"] != "missing":
                name = ".".join(map(str, detail["loc"]))
                raise TypeError(
                    f"{where}: the default {detail['input']!r} of its option '{name}' is not valid: {detail['msg']}"
                ) from error
    return config
