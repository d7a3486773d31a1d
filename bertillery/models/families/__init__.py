"""Our own model families, one file each. A file registers its classes with the Auto classes of transformers; nothing
lists the files."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
