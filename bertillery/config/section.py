"""Typed configuration: frozen pydantic sections, YAML files read left to right, then ``key.sub=value`` overrides.

Defaults live in the section classes; a YAML file holds differences only. The resolved configuration is a YAML document
that reproduces the run (``dump``).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class InputError(ValueError):
    """An input cannot be used; the message says what was given, what is allowed and what to do."""


class ConfigError(InputError):
    """The configuration cannot be used; the message lists all problems."""


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The shipped configurations, beside the packages both in a checkout and in an installation."""


def configurations(folder: Path) -> Path:
    """The given folder of ``CONFIGS``; ``ConfigError`` if it does not exist."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, although it is part of the program; install the program again")
    return folder


class Section(BaseModel):
    """Base of configuration sections: frozen, strict about keys, with field docstrings for ``--help``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # a key that is a Python keyword, such as "from", is an alias
    )

    @classmethod
    def variant(cls, values: Any) -> type[Section]:
        """The class that these values belong to: a subclass, where one of the keys decides which other keys there are.

        A class that returns another one here validates through it, too.
        """
        return cls

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """What to write instead of a key that the section does not have."""
        keys = [field.alias or name for name, field in cls.model_fields.items()]
        near = difflib.get_close_matches(key, keys, n=1)
        return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}"


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


S = TypeVar("S", bound=Section)


def validate(schema: type[S], values: dict[str, Any], sources: dict[str, str] | None = None) -> S:
    """Build the section from plain values; raises one ``ConfigError`` that lists all problems and suggests keys."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_describe(schema, values, problem, sources or {}) for problem in error.errors()]
        head = f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in the configuration:"
        raise ConfigError("\n".join([head, *(f"  - {line}" for line in lines)])) from None


def check_sections(schema: type[Section], values: dict[str, Any], sources: dict[str, str], prefix: str = "") -> None:
    """Raise ``ConfigError`` for a section that is not a mapping: commands look into ``values`` before :func:`validate`
    checks them."""
    for name, field in schema.model_fields.items():
        key, section = field.alias or name, _section_of(field.annotation)
        if section is None or get_origin(field.annotation) is list or key not in values:
            continue
        if values[key] is None and NoneType in get_args(field.annotation):
            continue
        path = f"{prefix}{key}"
        if not isinstance(values[key], dict):
            raise ConfigError(_no_section(path, values[key], section, _where(sources, path.split("."))))
        check_sections(section.variant(values[key]), values[key], sources, f"{path}.")


def _section_of(annotation: Any) -> type[Section] | None:
    """The section type in a field's annotation, also in a list or an optional; None for other fields."""
    options = [annotation, *get_args(annotation)]
    options = [getattr(option, "__origin__", option) for option in options]  # unpacks Annotated[...]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _no_section(path: str, value: Any, section: type[Section], where: str) -> str:
    keys = [field.alias or name for name, field in section.model_fields.items()] or ["type"]  # an objective's section
    names_it = next((key for key in keys if key == "from" or len(keys) == 1), None)
    if isinstance(value, str) and names_it:
        hint = f"did you mean {path}.{names_it}={value}?"
    else:
        hint = f"give its keys: {', '.join(f'{path}.{key}' for key in keys)}"
    return f"{path}: given {value!r}{where}, but it is a section; {hint}"


def take(schema: type[S], arguments: Sequence[str]) -> tuple[S, list[str]]:
    """Split arguments into a command's own section and the remaining arguments, for another command.

    Raises what :func:`read_values` and :func:`validate` raise.
    """
    own = [given for given in arguments if given.split("=")[0] in schema.model_fields]
    return validate(schema, *read_values(own)), [given for given in arguments if given not in own]


def _describe(schema: type[Section], values: Any, problem: Any, sources: dict[str, str]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path) or "the configuration"
    where = _where(sources, path)
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown key{where}; {_section_at(schema, values, problem['loc'][:-1]).unknown_key(path[-1])}"
    if problem["type"] == "missing":
        return f"{name}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "assertion_error") and isinstance(problem["input"], dict | Section):
        return f"{name}: {message}{where}"
    return f"{name}: given {problem['input']!r}{where}: {message}"


def _where(sources: dict[str, str], path: Sequence[str]) -> str:
    source = next((sources[k] for k in (".".join(path[:n]) for n in range(len(path), 0, -1)) if k in sources), None)
    return f" (from {source})" if source else ""


def _section_at(schema: type[Section], values: Any, path: Sequence[str | int]) -> type[Section]:
    """The class of the section that ``path`` leads to."""
    current = schema.variant(values)
    for part in path:
        fields = {field.alias or name: field for name, field in current.model_fields.items()}
        if isinstance(part, str) and part in fields:
            current = _section_of(fields[part].annotation) or current
        if isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            values = values.get(part) if isinstance(values, dict) else None
        current = current.variant(values)
    return current


def dump(section: Section, encoding: str = "utf-8") -> str:
    """The configuration as YAML that reads back as an equal section; characters that ``encoding`` lacks are escaped."""
    values = section.model_dump(mode="json", by_alias=True)
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if text.encode(encoding, errors="ignore").decode(encoding) == text:
        return text
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


def completed(values: dict[str, Any], schema: type[Section]) -> dict[str, Any]:
    """A dumped configuration with defaults for keys that are newer than it; unchanged if the schema rejects it."""
    try:
        return schema.model_validate(values).model_dump(mode="json", by_alias=True)
    except ValidationError:
        return values


def describe_sections(schema: type[Section], only: str | None = None) -> str:
    """Every key as in :func:`describe`, below a heading for each section; ``only`` one section, or one key.

    ``ConfigError`` for a section that the schema does not have.
    """
    blocks = {}
    for name, field in schema.model_fields.items():
        key, section = field.alias or name, _section_of(field.annotation)
        about = " ".join((section.__doc__ or "").split("\n\n")[0].split()) if section else ""
        blocks[key] = (f"{key.upper()}: {about}\n\n" if section else "") + describe(schema, names=(name,))
    if only is not None and only not in blocks:
        raise ConfigError(f"--help {only}: no such section; there are: {', '.join(blocks)}")
    return "\n\n".join(blocks.values() if only is None else [blocks[only]])


_WORDS = {"None": "null", "True": "true", "False": "false"}
"""Python's names of values that YAML writes otherwise."""


def _kind(annotation: Any) -> str:
    """A type as ``--help`` shows it: choices with bars between them, as ``auto | bf16 | fp32`` or ``int | null``."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(_WORDS.get(repr(choice), choice)) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_kind, get_args(annotation)))
    if annotation is bool:
        return "true | false"
    if annotation is NoneType:
        return "null"
    plain = isinstance(annotation, type) and not get_args(annotation)
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def describe(
    schema: type[Section], prefix: str = "", defaults: Section | None = None, names: Collection[str] | None = None
) -> str:
    """Every key with its type, default and docstring, for ``--help``; ``defaults`` replace those of the schema.

    ``names`` are the fields to describe, by default all.
    """
    lines, kinds = [], get_type_hints(schema)
    for name, field in schema.model_fields.items():
        if names is not None and name not in names:
            continue
        default = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        key, nested = f"{prefix}{field.alias or name}", _section_of(field.annotation)
        if nested and nested is not schema:  # a section within its own kind repeats the keys above
            listed, held = isinstance(default, list), default[0] if isinstance(default, list) else default
            lines.append(describe(nested, f"{key}.0." if listed else f"{key}.", held if type(held) is nested else None))
        else:
            shown = str(default) if isinstance(default, Path) else _WORDS.get(repr(default), repr(default))
            given = "required" if field.is_required() and defaults is None else f"default {shown}"
            lines.append(f"{key} ({_kind(kinds[name])}, {given})\n    {' '.join((field.description or '').split())}")
    return "\n".join(filter(None, lines))
