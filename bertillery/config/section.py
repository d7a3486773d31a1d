"""Typed configuration: frozen pydantic sections, YAML files read left to right, then ``key.sub=value`` overrides.

Defaults live in the section classes, a YAML file holds only differences, and an overlay is one more YAML file. The
resolved configuration is a plain YAML document that reruns the run (``dump``).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class InputError(ValueError):
    """Something given cannot be used; the message says what was given, what is allowed and what to do."""


class ConfigError(InputError):
    """The configuration cannot be used; the message lists every problem at once."""


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The configurations that are shipped, beside the packages: in a checkout as in an installation."""


def configurations(folder: Path) -> Path:
    """A folder below ``CONFIGS``, as it is; ``ConfigError`` where it is not there."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, though it is a part of the program; install the program again")
    return folder


class Section(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused, field docstrings kept for ``--help``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # a key that Python keeps for itself, such as "from", is an alias
    )


class _Loader(yaml.SafeLoader):
    """PyYAML reads ``5e-5`` as a string, ``off`` as false, ``010`` as 8, ``1:30`` as 90 and ``2024-01-01`` as a date,
    and accepts a key given twice and aliases of aliases without end. This loader does not: a scalar that is no decimal
    number, without leading zeros, is text as it is written."""

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
        if node is not None:
            self._bound(node)
        return node

    def _bound(self, node: yaml.Node) -> None:
        """``ConfigError`` where aliases stand for far more values than were written, or for what holds them."""
        sizes: dict[int, int] = {}

        def size(each: yaml.Node) -> int:
            if id(each) in sizes:
                return sizes[id(each)]
            sizes[id(each)] = _MOST_VALUES + 1  # as long as it is not known: what holds itself has no end
            pairs = each.value if isinstance(each, yaml.MappingNode) else []
            items = each.value if isinstance(each, yaml.SequenceNode) else [part for pair in pairs for part in pair]
            sizes[id(each)] = 1 + sum(map(size, items))
            return sizes[id(each)]

        if size(node) > _MOST_VALUES + len(sizes):
            raise ConfigError(
                f"{node.start_mark.name}: its aliases (*name) stand for more than {_MOST_VALUES:,} values, or for "
                "themselves; write the values out"
            )


_DEEPEST = 20
"""Parts of a dotted key; a setting has far fewer."""
_SHOWN = 200
"""Characters of an argument in a message."""
_MOST_VALUES = 10_000
"""That a YAML document may have by aliases, beside those that are written out."""
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_FLOAT = re.compile(  # integers are recognised before it
    r"^[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes text that any reader would take for a number: what PyYAML does, and ours."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_values(
    arguments: Sequence[str], under: dict[str, Any] | None = None, called: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge ``*.yaml`` files and ``dotted.key=value`` overrides, left to right, over the values ``under`` them.

    ``called`` is what messages call those. A number in a dotted key counts the items of a list from 0, as in
    ``train.phases.0.batch_size=16``. Returns the merged values and, for each dotted key, the file or argument
    that set it last. Raises ``ConfigError`` for a missing or malformed file or argument.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _merge(values, under or {}, sources, called)
    for argument in arguments:
        layer, source = _layer_of(argument)
        _merge(values, layer, sources, source)
    return values, sources


def _layer_of(argument: str) -> tuple[dict[str, Any], str]:
    """What an argument sets, and what messages call the argument."""
    if names_file(argument):
        return _read_file(Path(argument), argument), argument
    source = f"argument {argument if len(argument) <= _SHOWN else f'{argument[:_SHOWN]}...'!r}"
    if argument.startswith("-"):
        plain = argument.lstrip("-")
        hint = f"; did you mean {plain!r}?" if "=" in plain else "; there are --help and --print-config"
        raise ConfigError(f"{source}: settings are given as key.sub=value, without dashes{hint}")
    if "=" not in argument:
        raise ConfigError(f"{source} is neither a *.yaml file nor key.sub=value")
    key, text = argument.split("=", 1)
    layer: Any = parse_yaml(text, source)
    parts = key.strip().split(".")
    if len(parts) > _DEEPEST:
        raise ConfigError(f"{source}: a key of {len(parts):,} parts; no setting has more than {_DEEPEST}")
    for part in reversed(parts):
        layer = {part: layer}
    return layer, source


def _read_file(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"no configuration file {name!r}" + (f"; there are: {', '.join(near)}" * bool(near)))
    try:
        layer = parse_yaml(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(layer, dict | None):
        raise ConfigError(f"{name}: a configuration file holds keys and values, this one a {type(layer).__name__}")
    return layer or {}


def names_file(argument: str) -> bool:
    """Whether an argument of a command is a configuration file, not ``key=value``."""
    return argument.endswith((".yaml", ".yml")) and ("=" not in argument or Path(argument).is_file())


def parse_yaml(text: str, name: str) -> Any:
    """Plain values of a YAML document; ``ConfigError`` opened by ``name`` where it is not one."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply") from None
    except Exception as error:  # a date or a number that is none raises what int() or datetime() do
        raise ConfigError(f"{name}: not valid YAML: {error}") from error


def _merge(into: dict[str, Any], layer: dict[str, Any], sources: dict[str, str], source: str, prefix: str = "") -> None:
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ConfigError(f"{path}: {source} has {key!r} for a key, which is no text; the keys are names")
        if isinstance(value, dict):
            held, numbered = into.get(key), bool(value) and all(_is_number(part) for part in value)
            if numbered and isinstance(held, dict) and held:
                raise ConfigError(
                    f"{path}: {source} counts items ({', '.join(map(str, value))}), but this is no list; its keys are "
                    f"names, such as {path}.{next(iter(held))}"
                )
            if numbered and isinstance(held, list):
                held = {str(i): dict(item) if isinstance(item, dict) else item for i, item in enumerate(held)}
            into[key] = held if isinstance(held, dict) else {}
            sources[path] = source
            _merge(into[key], {str(k): v for k, v in value.items()} if numbered else value, sources, source, f"{path}.")
            if numbered:
                into[key] = _listed(into[key], path, source)
        else:
            into[key] = value
            sources[path] = source


def _is_number(part: Any) -> bool:
    """Whether a key counts an item of a list."""
    return (isinstance(part, int) and not isinstance(part, bool) and part >= 0) or (
        isinstance(part, str) and part.isascii() and part.isdecimal() and len(part) < 10
    )


def _listed(items: dict[str, Any], path: str, source: str) -> list[Any]:
    """What was given by numbers as the list it is."""
    if sorted(map(int, items)) != list(range(len(items))):
        raise ConfigError(f"{path}: {source} leaves a gap; its items are counted from 0: {', '.join(items)}")
    return [items[number] for number in sorted(items, key=int)]


S = TypeVar("S", bound=Section)


def validate(schema: type[S], values: dict[str, Any], sources: dict[str, str] | None = None) -> S:
    """Build the section from plain values; raises one ``ConfigError`` that lists all problems and near names."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_describe(schema, problem, sources or {}) for problem in error.errors()]
        head = f"{len(lines)} problem{'s' * (len(lines) > 1)} in the configuration:"
        raise ConfigError("\n".join([head, *(f"  - {line}" for line in lines)])) from None


def check_sections(schema: type[Section], values: dict[str, Any], sources: dict[str, str], prefix: str = "") -> None:
    """Raise ``ConfigError`` where something else stands in the place of a section, for who looks into the ``values``
    before :func:`validate` does."""
    for name, field in schema.model_fields.items():
        key, section = field.alias or name, _section_of(field.annotation)
        if section is None or get_origin(field.annotation) is list or key not in values:
            continue
        if values[key] is None and NoneType in get_args(field.annotation):
            continue
        path = f"{prefix}{key}"
        if not isinstance(values[key], dict):
            raise ConfigError(_no_section(path, values[key], section, _where(sources, path.split("."))))
        check_sections(section, values[key], sources, f"{path}.")


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, or may hold, or holds a list of; None for any other field."""
    options = [annotation, *get_args(annotation)]
    options = [getattr(option, "__origin__", option) for option in options]  # what stands in an Annotated[...]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _no_section(path: str, value: Any, section: type[Section], where: str) -> str:
    keys = [field.alias or name for name, field in section.model_fields.items()] or ["type"]  # an objective's: a module
    names_it = next((key for key in keys if key == "from" or len(keys) == 1), None)
    if isinstance(value, str) and names_it:
        hint = f"did you mean {path}.{names_it}={value}?"
    else:
        hint = f"give its keys: {', '.join(f'{path}.{key}' for key in keys)}"
    return f"{path}: given {value!r}{where}, but it is a section; {hint}"


def take(schema: type[S], arguments: Sequence[str]) -> tuple[S, list[str]]:
    """The section of a command's own keys, and the other arguments, which are some other command's.

    Raises what :func:`read_values` and :func:`validate` do.
    """
    own = [given for given in arguments if given.split("=")[0] in schema.model_fields]
    return validate(schema, *read_values(own)), [given for given in arguments if given not in own]


def _describe(schema: type[Section], problem: Any, sources: dict[str, str]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path) or "the configuration"
    where = _where(sources, path)
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(schema, path[:-1])
        near = difflib.get_close_matches(path[-1], fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
        return f"{name}: unknown key{where}; {hint}"
    if problem["type"] == "missing":
        return f"{name}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "assertion_error") and isinstance(problem["input"], dict | Section):
        return f"{name}: {message}{where}"
    return f"{name}: given {problem['input']!r}{where}: {message}"


def _where(sources: dict[str, str], path: Sequence[str]) -> str:
    source = next((sources[k] for k in (".".join(path[:n]) for n in range(len(path), 0, -1)) if k in sources), None)
    return f" (from {source})" if source else ""


def _fields_at(schema: type[Section], path: Sequence[str]) -> list[str]:
    """Names of the fields of the section that ``path`` leads to."""
    current: Any = schema
    for part in path:
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else current
        current = _section_of(annotation) or current
    return [field.alias or name for name, field in current.model_fields.items()]


def dump(section: Section, encoding: str = "utf-8") -> str:
    """The resolved configuration as YAML; reading it back gives an equal section, also where it is printed in an
    ``encoding`` that lacks some of its characters."""
    values = section.model_dump(mode="json", by_alias=True)
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    return text


def completed(values: dict[str, Any], schema: type[Section]) -> dict[str, Any]:
    """A configuration that was dumped, with the keys that were added since, at their defaults; as it is where it is not
    one that the schema takes today."""
    try:
        return schema.model_validate(values).model_dump(mode="json", by_alias=True)
    except ValidationError:
        return values


def describe(schema: type[Section], prefix: str = "", defaults: Section | None = None) -> str:
    """Every key with its type, default and docstring: the text behind ``--help``.

    ``defaults`` are those of the section that has it, where they are not the schema's own.
    """
    lines, kinds = [], get_type_hints(schema)
    for name, field in schema.model_fields.items():
        default = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        key, nested = f"{prefix}{field.alias or name}", _section_of(field.annotation)
        if nested and nested is not schema:  # one of its own kind has the keys that are said already
            listed, held = isinstance(default, list), default[0] if isinstance(default, list) else default
            lines.append(describe(nested, f"{key}.0." if listed else f"{key}.", held if type(held) is nested else None))
        else:
            kind = kinds[name].__name__ if isinstance(kinds[name], type) else str(kinds[name]).replace("typing.", "")
            shown = str(default) if isinstance(default, Path) else repr(default)
            given = "required" if field.is_required() and defaults is None else f"default {shown}"
            lines.append(f"{key} ({kind}, {given})\n    {' '.join((field.description or '').split())}")
    return "\n".join(filter(None, lines))
