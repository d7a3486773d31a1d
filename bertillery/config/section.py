"""Typed configuration: frozen pydantic sections, their checks and their descriptions.

Defaults live in the section classes; where values come from is :mod:`bertillery.config.layers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError


class InputError(ValueError):
    """An input cannot be used; the message says what was given, what is allowed and what to do."""


class ConfigError(InputError):
    """The configuration cannot be used; the message lists all problems."""


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
