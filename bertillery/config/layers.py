"""Layers of settings: YAML files read left to right, then ``key.sub=value`` overrides.

A YAML file holds differences from the sections' defaults only. The resolved configuration is a YAML document that
reproduces the run (``dump``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bertillery.config.section import ConfigError, S, Section, validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The shipped configurations, beside the packages both in a checkout and in an installation."""


def configurations(folder: Path) -> Path:
    """The given folder of ``CONFIGS``; ``ConfigError`` if it does not exist."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, although it is part of the program; install the program again")
    return folder


_MOST_VALUES = 10_000
"""Values that the aliases of a YAML document may stand for."""
_DEEPEST = 20
"""Parts of a dotted key; no setting has as many."""
_SHOWN = 200
"""Characters of an argument that a message shows."""
_FLOAT = re.compile(  # integers are recognised before it
    r"^[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Reads a scalar as text unless it is a decimal number without leading zeros, a boolean or null; refuses duplicate
    keys and endless aliases.

    PyYAML itself reads ``5e-5`` as text, ``off`` as false, ``010`` as 8, ``1:30`` as 90 and ``2024-01-01`` as a date.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        made = super().construct_mapping(node, deep=deep)  # refuses keys that are lists or mappings
        if len(made) < len(keys):
            twice = sorted({str(key) for key, number in Counter(keys).items() if number > 1})
            raise ConfigError(f"{node.start_mark.name}: given twice: {', '.join(twice)}")
        return made

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        # Every value that is written out takes a character, so only aliases can lead to more values than this.
        left, ahead = _MOST_VALUES + len(self.buffer), [node] if node else []
        while ahead and left:
            found, left = ahead.pop(), left - 1
            pairs = found.value if isinstance(found, yaml.MappingNode) else []
            ahead += found.value if isinstance(found, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        if ahead and node:
            raise ConfigError(
                f"{node.start_mark.name}: its aliases (*name) stand for more than {_MOST_VALUES:,} values, or for "
                "themselves; write the values out"
            )
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes text that PyYAML or :class:`_Loader` would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclass(frozen=True)
class Layer:
    """Settings from one file or argument of a command line, or from a recipe below them."""

    values: dict[str, Any]
    source: str
    """What messages call the layer."""
    argument: str = ""


def read_layers(arguments: Sequence[str]) -> list[Layer]:
    """Read ``*.yaml`` files and ``dotted.key=value`` overrides; ``ConfigError`` for a missing or malformed one."""
    layers = []
    for argument in arguments:
        if names_file(argument):
            layers.append(Layer(_read_file(Path(argument)), argument, argument))
        else:
            source = f"argument {argument if len(argument) <= _SHOWN else f'{argument[:_SHOWN]}...'!r}"
            layers.append(Layer(_read_override(argument, source), source, argument))
    return layers


def merge_layers(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers, later ones over earlier ones: the values, and for each dotted key the source that set it last.

    A number in a dotted key is the index of a list item, counted from 0: ``train.phases.0.batch_size=16``. Raises
    ``ConfigError`` for a key that is not text and an index that leaves a gap.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        _merge(values, deepcopy(layer.values), sources, layer.source)
    return values, sources


def read_values(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged layers of the arguments; raises what :func:`read_layers` and :func:`merge_layers` raise."""
    return merge_layers(read_layers(arguments))


def names_file(argument: str) -> bool:
    """Whether an argument of a command is a configuration file, not ``key=value``."""
    return argument.endswith((".yaml", ".yml")) and ("=" not in argument or Path(argument).is_file())


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"no configuration file {str(path)!r}" + (f"; there are: {', '.join(near)}" if near else ""))
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: a configuration file holds keys and values, this one a {type(values).__name__}")
    return values or {}


def _read_override(argument: str, source: str) -> dict[str, Any]:
    if argument.startswith("-"):
        plain = argument.lstrip("-")
        hint = f"did you mean {plain!r}?" if "=" in plain else "there are --help and --print-config"
        if plain == "dry-run":
            hint = "--dry-run is for one training, of pretrain, embed, finetune or distill"
        raise ConfigError(f"{source}: settings are given as key.sub=value, without dashes; {hint}")
    if "=" not in argument:
        raise ConfigError(f"{source} is neither a *.yaml file nor key.sub=value")
    key, text = argument.split("=", 1)
    parts, value = key.strip().split("."), parse_yaml(text, source)
    if len(parts) > _DEEPEST:
        raise ConfigError(f"{source}: a key of {len(parts):,} parts; no setting has more than {_DEEPEST}")
    for part in reversed(parts):
        value = {part: value}
    return value


def parse_yaml(text: str, name: str) -> Any:
    """Plain values of a YAML document; ``ConfigError`` that begins with ``name`` if it is not valid."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply") from None
    except Exception as error:  # a tag such as !!int raises what int() raises
        raise ConfigError(f"{name}: not valid YAML: {error}") from error


_INDEX = re.compile("[0-9]{1,9}")


def _merge(into: dict[str, Any], layer: dict[str, Any], sources: dict[str, str], source: str, prefix: str = "") -> None:
    """Put the values of a layer over those of ``into``: mappings key by key, and lists item by item where the layer
    gives items by index."""
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ConfigError(f"{path}: {source} has the key {key!r}, which is not text; keys are names")
        sources[path] = source
        held = into.get(key)
        if not isinstance(value, dict):
            into[key] = value
        elif not value or not all(_INDEX.fullmatch(str(part)) for part in value):
            into[key] = held if isinstance(held, dict) else {}
            _merge(into[key], value, sources, source, f"{path}.")
        elif isinstance(held, dict) and held:
            raise ConfigError(
                f"{path}: {source} gives list items ({', '.join(map(str, value))}), but this is a section; its keys "
                f"are names, such as {path}.{next(iter(held))}"
            )
        else:
            before = held if isinstance(held, list) else []
            items = {str(i): dict(item) if isinstance(item, dict) else item for i, item in enumerate(before)}
            _merge(items, {str(index): item for index, item in value.items()}, sources, source, f"{path}.")
            if sorted(map(int, items)) != list(range(len(items))):
                raise ConfigError(f"{path}: {source} leaves a gap; items are counted from 0: {', '.join(items)}")
            into[key] = [items[index] for index in sorted(items, key=int)]


def take(schema: type[S], arguments: Sequence[str]) -> tuple[S, list[str]]:
    """Split arguments into a command's own section and the remaining arguments, for another command.

    Raises what :func:`read_values` and :func:`validate` raise.
    """
    own = [given for given in arguments if given.split("=")[0] in schema.model_fields]
    return validate(schema, *read_values(own)), [given for given in arguments if given not in own]


def dump(section: Section, encoding: str = "utf-8") -> str:
    """The configuration as YAML that reads back as an equal section; characters that ``encoding`` lacks are escaped."""
    values = section.model_dump(mode="json", by_alias=True)
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if text.encode(encoding, errors="ignore").decode(encoding) == text:
        return text
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
