"""Model cards and other Markdown pages that are published: with metadata for the Hub, without paths of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bertillery.report.table import escaped, fenced


def model_card(
    title: str,
    *parts: str,
    config: str,
    tags: Sequence[str] = (),
    pipeline: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of an export. It ends with ``config``, the configuration (YAML) that reproduces the model.

    ``parts`` are Markdown; ``pipeline`` is what the Hub calls such a model.
    """
    head = {
        "library_name": "transformers",
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": ["bertillery", *tags],
        **(metadata or {}),
    }
    return page(head, title, *parts, "## Configuration", fenced(config, "yaml"))


def fact_list(facts: Mapping[str, str]) -> str:
    """Facts as a Markdown list; the values are escaped."""
    return "\n".join(f"- {name}: {escaped(value)}" for name, value in facts.items())


def page(head: Mapping[str, Any], title: str, *parts: str) -> str:
    """A page with metadata that the Hub reads. ``parts`` are Markdown; paths are :func:`shortened`."""
    metadata = yaml.safe_dump(dict(head), sort_keys=False)
    return shortened("\n\n".join([f"---\n{metadata}---", f"# {escaped(title)}", *filter(None, parts)]) + "\n")


def shortened(text: str) -> str:
    """Text whose absolute paths say nothing about the machine: relative to the working directory or ``~`` if they are
    below it, else their last one or two parts."""

    def short(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(match[0]))
        if not os.path.exists(Path(*path.parts[:2])):  # "/" begins other things than paths, such as the name of a label
            return match[0]
        for root, prefix in ((Path.cwd(), Path()), (Path(os.path.expanduser("~")), Path("~"))):
            if path.is_relative_to(root) and len(root.parts) > 1:
                return str(prefix / path.relative_to(root))
        return "/".join(path.parts[-min(2, max(1, len(path.parts) - 3)) :])

    return re.sub(r"""(?<![\w./:~\\-])/[^\s'"`,;:|<>()\[\]{}]+""", short, text)
