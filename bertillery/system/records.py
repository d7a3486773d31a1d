"""State files (JSON and YAML) of runs, corpora and model folders, validated by a schema when they are read.

Such a file may be damaged, incomplete or another program's. Every defect is one ``InputError`` that names the file, the
defect and what to do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bertillery.config.layers import parse_yaml
from bertillery.config.section import ConfigError, InputError

LARGEST = 64_000_000
"""Bytes; state files are far smaller."""

T = TypeVar("T")


def read_json(path: Path, schema: type[T] | Any, *, remedy: str) -> T:
    """The content of a JSON file, validated by ``schema`` (a pydantic model or any type annotation).

    ``remedy`` ends the message, as in ``"delete the folder and prepare again"``. Raises ``InputError`` if the file is
    missing, not UTF-8, not JSON, or does not fit the schema.
    """
    text = read_text(path, remedy=remedy)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None
    return checked(path, values, schema, remedy=remedy)


def read_yaml(path: Path, schema: type[T] | Any, *, remedy: str) -> T:
    """The same for a YAML file."""
    text = read_text(path, remedy=remedy)
    try:
        values = parse_yaml(text, str(path))
    except ConfigError as error:
        raise InputError(f"{error}; {remedy}") from None
    return checked(path, values, schema, remedy=remedy)


def read_text(path: Path, *, remedy: str) -> str:
    """The text of a small UTF-8 file; ``InputError`` if it cannot be read."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"{path}: {size:,} bytes, at most {LARGEST:,} are expected; {remedy}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {remedy}") from None


_SCHEMA = re.compile(r" or instance of \w+")
"""Pydantic names a class of ours, which says nothing of the file."""


def checked(path: Path, values: Any, schema: type[T] | Any, *, remedy: str) -> T:
    """Plain ``values`` validated by the schema; ``InputError`` lists what does not fit."""
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc'])) or 'the content'}: {_SCHEMA.sub('', each['msg'])}"
            for each in error.errors()
        ]
        more = [f"and {len(problems) - 4} more"] if len(problems) > 4 else []
        shown = "; ".join(problems[:4] + more)
        raise InputError(f"{path}: {shown}; {remedy}") from None
