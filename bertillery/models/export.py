"""The end of a stage: a stock Hugging Face model directory, proven to load before it gets its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bertillery.models.frame import exported_tokenizer
from bertillery.system.files import publish, remove, write_text, writing


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    card: str,
    auxiliary_models: Mapping[str, PreTrainedModel] | None = None,
    carried: Mapping[str, nn.Module] | None = None,
    beside: Mapping[str, str] | None = None,
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    max_length: int | None = None,
    texts_only: bool = False,
    spaced: bool = False,
) -> Path:
    """Write model, tokenizer and model card (Markdown) to ``folder``, replacing an older export, and return it.

    ``auxiliary_models`` are written whole, with the tokenizer, to folders of their names within it; the tensors of what
    is ``carried`` to a later stage to ``<name>.safetensors``, which no stock class reads; further ``tokenizers`` to
    folders of their names, and texts ``beside`` them to files of theirs. The folder appears only after everything was
    read back, models by their own classes without a warning, and every tensor was found equal bit by bit;
    ``RuntimeError`` otherwise. The attention function used in training is no part of what is saved.

    The tokenizer beside each model gives stock code the sequences of training
    (:func:`bertillery.models.frame.exported_tokenizer`,
    to which ``max_length``, ``texts_only`` and ``spaced`` go).
    """
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    models = {".": model, **(auxiliary_models or {})}
    options: Any = {"max_length": max_length, "texts_only": texts_only, "spaced": spaced}
    problems = []
    with warnings_of_transformers() as warnings:
        for name, each in models.items():
            dtypes = {str(parameter.dtype) for parameter in each.parameters()}
            assert dtypes == {"torch.float32"}, f"weights are trained and exported in float32, not {dtypes}"
            with writing(partial / name):
                each.save_pretrained(partial / name)
                exported_tokenizer(tokenizer, each.config, **options).save_pretrained(partial / name)
            problems += _differences(each, tokenizer, partial / name)
        for name, each in (tokenizers or {}).items():
            with writing(partial / name):
                exported_tokenizer(each, model.config, **options).save_pretrained(partial / name)
            problems += _other_vocabulary(each, partial / name)
        for name, part in (carried or {}).items():
            with writing(partial / f"{name}.safetensors"):
                problems += _write_tensors(part, partial / f"{name}.safetensors")
        for name, text in {**(beside or {}), "README.md": card}.items():
            write_text(partial / name, text)
    if problems or warnings:
        listing = "\n".join(f"  - {problem}" for problem in [*problems, *warnings])
        raise RuntimeError(f"what was read back from {partial} is not what was to be exported:\n{listing}")
    publish(partial, folder)
    return folder


def _differences(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    loaded: Any = type(model).from_pretrained(folder, output_loading_info=True)
    read, report = loaded
    problems = [f"{kind}: {', '.join(map(str, keys))}" for kind, keys in report.items() if keys]
    written, found = model.state_dict(), read.state_dict()
    problems += [f"{name}: in one of the two only" for name in sorted(written.keys() ^ found.keys())]
    both = [name for name in written if name in found]
    problems += [f"{name}: differs" for name in both if not _same_bits(written[name], found[name])]
    if read.config.architectures != [type(model).__name__] or read.config.dtype != torch.float32:
        problems.append(f"config.json: architectures {read.config.architectures}, dtype {read.config.dtype}")
    if "attn_implementation" in (folder / "config.json").read_text(encoding="utf-8"):
        problems.append("config.json: names an attention function, which other programs may not have")
    return problems + _other_vocabulary(tokenizer, folder)


def _other_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    same = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab() == tokenizer.get_vocab()
    return [] if same else [f"{folder.name}: tokenizer: another vocabulary"]


def _write_tensors(part: nn.Module, file: Path) -> list[str]:
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in part.state_dict().items()}
    save_file(written, file)
    read = load_file(file)
    whole = read.keys() == written.keys() and all(_same_bits(written[name], read[name]) for name in written)
    return [] if whole else [f"{file.name}: differs"]


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes()


@contextmanager
def warnings_of_transformers() -> Iterator[list[str]]:
    """Collect what the library warns of, such as its load report, instead of showing it; no progress bars."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    library = logging.getLogger("transformers")
    bars = transformers_logging.is_progress_bar_enabled()
    handlers, library.handlers = library.handlers, [handler]
    propagate, library.propagate = library.propagate, False
    transformers_logging.disable_progress_bar()
    try:
        yield messages
    finally:
        library.handlers, library.propagate = handlers, propagate
        if bars:
            transformers_logging.enable_progress_bar()
