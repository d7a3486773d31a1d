"""``python -m deploy.schema output=schemas``: JSON schemas of the YAML files, for editors that complete and check.

One file for each kind of YAML. A YAML holds differences from the defaults, so that no key is required. Conditions
between keys are checked by the commands alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from bertillery.config.section import Section
from bertillery.run.command import tool
from bertillery.system.files import write_text
from distill.config import TaskAgnosticConfig, TaskConfig
from finetune.config import FinetuneConfig
from finetune.recipe import Recipe
from finetune.task import task_types
from finetune.translating import ExistingSection, TranslationConfig
from knowledge.stage import EmbedConfig
from pretrain.config import PretrainConfig
from prompting.items import FewshotTask
from translation.architecture import RnnSection, TransformerSection

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_GROUPED = {"type": "string", "pattern": r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?$"}
"""A number with underscores, which is text to an editor (YAML 1.2) and a number to the commands."""
_SPACE = {
    "$schema": _DIALECT,
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"type": "array", "minItems": 1},
            {
                "type": "object",
                "properties": {"distribution": {"enum": ["uniform", "log_uniform"]}, "low": {}, "high": {}},
                "required": ["distribution", "low", "high"],
                "additionalProperties": False,
            },
        ]
    },
}


class SchemaSection(Section):
    """Keys of the command."""

    output: Path = Path("schemas")
    """Folder of the schemas."""


class _Generator(GenerateJsonSchema):
    """Allows what the validators allow: one value for a list of one, and numbers with underscores."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _GROUPED]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _GROUPED]}

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        if inner.get("type") == "array":
            return {"anyOf": [inner, inner["items"]]}
        if inner.get("type") == "string":
            return {**inner, "type": ["string", "number", "boolean"]}
        if inner.get("type") == "object" and "additionalProperties" in inner:  # null takes an entry back
            return {**inner, "additionalProperties": {"anyOf": [inner["additionalProperties"], {"type": "null"}]}}
        return inner


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of each kind of YAML, by the folder of ``configs`` that it is for."""
    methods = "distill.objectives"
    return {
        "pretrain": _schema([PretrainConfig], {"objective": [_sections("pretrain.objectives", "Config")]}),
        "finetune": _schema([FinetuneConfig, TranslationConfig], more=[FewshotTask]),
        "distill": _schema(
            [TaskConfig, TaskAgnosticConfig],
            {"objective": [_sections(methods, "Config"), _sections(methods, "AnswersConfig")]},
            properties={"tasks": {"additionalProperties": {"type": "array", "items": {"type": "string"}}}},
        ),
        "embed": _schema([EmbedConfig]),
        "prompting": _schema([FewshotTask]),
        "recipe": _schema([Recipe]),
        "space": _SPACE,
    }


def _sections(package: str, name: str) -> dict[str, type[Section]]:
    """The sections of this name in the modules of a package, by module."""
    names = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    modules = {each: importlib.import_module(f"{package}.{each}") for each in names}
    return {each: getattr(module, name) for each, module in modules.items() if hasattr(module, name)}


def _schema(
    configs: Sequence[type[Section]],
    by_type: Mapping[str, Sequence[Mapping[str, type[Section]]]] = {},
    *,
    more: Sequence[type[Section]] = (),
    properties: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """The schema of files with the keys of all ``configs`` and ``more``.

    ``by_type`` gives the classes of a section by the value of its key ``type``; those of ``task`` are known.
    """
    by_type = {**by_type, "task": [{name: module.Config for name, module in task_types().items()}]}
    kinds = [section for tables in by_type.values() for table in tables for section in table.values()]
    models = dict.fromkeys([*configs, *more, *kinds, TransformerSection, RnnSection, ExistingSection])
    references, found = models_json_schema([(each, "validation") for each in models], schema_generator=_Generator)
    references = {model: reference for (model, _), reference in references.items()}
    definitions = {name: _optional(definition) for name, definition in found["$defs"].items()}
    chosen = {
        key: _by_type([{name: references[section] for name, section in table.items()} for table in tables])
        for key, tables in by_type.items()
    }
    network = {"anyOf": [references[section] for section in (TransformerSection, RnnSection, ExistingSection)]}
    roots = []
    for config in [*configs, *more]:
        root = definitions[references[config]["$ref"].rpartition("/")[2]]
        given = {key: schema for key, schema in chosen.items() if key in root["properties"]}
        root["properties"] |= given | ({"model": network} if config is TranslationConfig else {})
        roots.append(root)
    merged: dict[str, Any] = dict(properties)
    for key in dict.fromkeys(key for root in roots for key in root["properties"]):
        options = [root["properties"][key] for root in roots if key in root["properties"]]
        different = [option for place, option in enumerate(options) if option not in options[:place]]
        merged[key] = different[0] if len(different) == 1 else {"anyOf": different}
    return {
        "$schema": _DIALECT,
        "type": "object",
        "properties": merged,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _by_type(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A section whose ``type`` decides on its other keys: those of one of the classes of that type."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    of_type = {name: [table[name] for table in tables if name in table] for name in names}
    conditions = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"anyOf": options} if len(options) > 1 else options[0],
        }
        for name, options in of_type.items()
    ]
    return {"type": "object", "properties": {"type": {"enum": names}}, "allOf": conditions}


def _optional(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition without required keys: a file holds only what differs from the defaults, or from other files."""
    return {key: value for key, value in definition.items() if key != "required"}


def main(arguments: Sequence[str]) -> int:
    """Write the schemas; returns the exit status."""
    return tool(arguments, help=__doc__, schema=SchemaSection, action=_run)


def _run(section: SchemaSection) -> int:
    section.output.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        file = section.output / f"{name}.schema.json"
        write_text(file, f"{json.dumps(schema, indent=1)}\n")
        print(file)
    print(
        "\nFor a file, as its first line:\n"
        f"  # yaml-language-server: $schema={section.output.resolve() / 'pretrain.schema.json'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
