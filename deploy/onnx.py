"""``python -m deploy.onnx model=<directory> key=value``: a stock model for ONNX Runtime, in float32 and in 8 bits.

Writes ``<directory>/onnx/model.onnx`` and ``model_int8.onnx``, both for any number and length of sequences. The first
appears only if it answers as the model does; of the second it is said how far off it is. Then all three are timed.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim
from transformers import PreTrainedModel

from bertillery.config.section import InputError, read_values, validate
from bertillery.models.encoders import longest_sequence
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.system.files import publish, remove
from deploy.compare import forward
from deploy.timing import Speed, SpeedSection, side_by_side, speed_rows
from finetune.stock import has_choices, open_stock, stock_inputs

_TOLERANCE = 1e-4
"""Of the largest number that the model answers with."""
_LARGEST = 2**31 - 1
"""Bytes of an ONNX file."""
_BASE, _FLOAT, _INT8 = "PyTorch", "ONNX float32", "ONNX int8"


class OnnxSection(SpeedSection):
    """What is exported, and what is timed."""

    model: Path
    """Directory of the model."""


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the one in PyTorch, over batches of several shapes."""

    difference: float
    """The largest of all outputs."""
    scale: float
    """The largest output of the model in PyTorch, without its sign."""
    same: float | None
    """Share of sequences, or of tokens, whose largest output is the same one; None for a single output."""

    @property
    def holds(self) -> bool:
        """Whether this is rounding; numbers that are none are not."""
        return self.difference <= _TOLERANCE * self.scale


def main(arguments: Sequence[str]) -> int:
    """Export, compare, time and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=OnnxSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section = validate(OnnxSection, *read_values(arguments))
    _check_packages()
    model = open_stock(section.model)
    lengths, notes = section.fitting(longest_sequence(model.config))
    folder = section.model / "onnx"
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir()
    files = {_FLOAT: partial / "model.onnx", _INT8: partial / "model_int8.onnx"}
    try:
        export(model, files[_FLOAT])
        quantize(files[_FLOAT], files[_INT8])
        sessions = {name: Session(file) for name, file in files.items()}
        parities = {name: compare(model, session) for name, session in sessions.items()}
        exact = parities[_FLOAT]
        if not exact.holds:
            raise InputError(
                f"{section.model}: the exported model is off by {exact.difference:.1e} where the model answers with up "
                f"to {exact.scale:.1e}, more than rounding ({_TOLERANCE:.0e}); nothing was written. "
                "Use the model in PyTorch, or try other versions of torch and onnx"
            )
        speeds = [
            _time(model, sessions, length, batch_size, section.rounds)
            for length in lengths
            for batch_size in sorted({*section.batch_sizes})
        ]
        sizes = {name: file.stat().st_size for name, file in files.items()}
        publish(partial, folder)
    finally:
        remove(partial)
    table = [markdown_table(_parity_rows(parities, sizes)), markdown_table(speed_rows(speeds, _BASE)), *notes]
    print("\n" + "\n\n".join(table))
    print(
        f"\nCPU, threads of each: {torch.get_num_threads()}; random tokens of the vocabulary.\n\n"
        f"float32     {folder / 'model.onnx'}\nint8        {folder / 'model_int8.onnx'}\n\n"
        f"to use      {_usage(model, folder / 'model.onnx')}"
    )
    return 0


def _usage(model: PreTrainedModel, file: Path) -> str:
    """A line of Python that runs the file on what the model's tokenizer makes of texts, whatever it gives unasked."""
    types = "token_type_ids" in stock_inputs(model, 1, 2)
    options = f"padding=True, truncation=True, return_token_type_ids={types}, return_tensors='np'"
    if has_choices(model):
        made = f"tokenizer([text] * len(choices), choices, {options})"
        inputs = f"{{name: value[None] for name, value in {made}.items()}}"
    else:
        inputs = f"dict(tokenizer(texts, {options}))"
    return f"onnxruntime.InferenceSession({str(file)!r}).run(None, {inputs})"


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"not installed: {', '.join(missing)}; pip install 'bertillery[onnx]', or `make onnx MODEL=...`, which "
            "installs them into .venv"
        )


def export(model: PreTrainedModel, file: Path) -> None:
    """Write the model with the inputs its tokenizer gives and the outputs it has, by their names; numbers and lengths
    of sequences are open. ``InputError`` for a model that one file cannot hold."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > _LARGEST:
        raise InputError(f"a model of {size / 1e9:.1f} GB does not fit into an ONNX file, which holds 2 GiB")
    inputs = stock_inputs(model, 2, min(8, longest_sequence(model.config)), padded=True)
    batch, choices, sequence = Dim("batch"), Dim("choices"), Dim("sequence")
    axes = (batch, choices, sequence) if inputs["input_ids"].ndim == 3 else (batch, sequence)
    if len(axes) == 3:  # a size of 1 would be taken for a constant
        inputs = {name: value.expand(-1, 2, -1).contiguous() for name, value in inputs.items()}
    with _quiet():
        torch.onnx.export(
            model,
            kwargs=inputs,
            f=file,
            input_names=list(inputs),
            output_names=list(_outputs(model, inputs)),
            dynamic_shapes={name: dict(enumerate(axes)) for name in inputs},
            external_data=False,
            verbose=False,
        )


def quantize(file: Path, quantized: Path) -> None:
    """Write the exported model with weights of matrices and embeddings in 8 bits; activations are scaled as they
    come."""
    quantization = importlib.import_module("onnxruntime.quantization")
    model = importlib.import_module("onnx").load(file)
    # The quantizer turns matrices over, and would find the shapes that were inferred before in its way.
    del model.graph.value_info[:]
    with _quiet():
        quantization.quantize_dynamic(model, quantized, weight_type=quantization.QuantType.QInt8)


class Session:
    """An exported model, run on the CPU with as many threads as torch has."""

    def __init__(self, file: Path) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names: list[str] = [output.name for output in self._session.get_outputs()]

    def prepare(self, inputs: dict[str, Tensor]) -> Callable[[], list[np.ndarray]]:
        """A run over these inputs, to be called again and again."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return lambda: self._session.run(None, arrays)


def compare(model: PreTrainedModel, session: Session) -> Parity:
    """Run both over short and long, single and padded batches."""
    longest = longest_sequence(model.config)
    shapes = {(b, min(length, longest)) for b, length in ((1, 1), (1, 7), (2, 16), (7, 33), (128, 32), (3, longest))}
    difference, scale, same = 0.0, 0.0, []
    for batch_size, length in sorted(shapes):
        inputs = stock_inputs(model, batch_size, length, padded=True)
        real = inputs["attention_mask"].bool().numpy()
        found = session.prepare(inputs)()
        for ours, theirs in zip(_outputs(model, inputs).values(), found, strict=True):
            # What a model makes of padding is nobody's answer.
            of_tokens = ours.ndim >= 2 and ours.shape[:2] == real.shape
            a, b = (ours[real], theirs[real]) if of_tokens else (ours, theirs)
            difference = float(np.maximum(difference, np.abs(a - b).max()))  # keeps what is not a number
            scale = max(scale, float(np.abs(a).max()))
            if a.ndim == 2 and a.shape[1] > 1:
                same.append(a.argmax(1) == b.argmax(1))
    return Parity(difference, scale, float(np.concatenate(same).mean()) if same else None)


def _outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {name: value.numpy() for name, value in model(**inputs).items() if isinstance(value, Tensor)}


def _time(model: PreTrainedModel, sessions: dict[str, Session], length: int, batch_size: int, rounds: int) -> Speed:
    inputs = stock_inputs(model, batch_size, length)
    sides: dict[str, Callable[[], object]] = {_BASE: forward(model, batch_size, length)}
    sides |= {name: session.prepare(inputs) for name, session in sessions.items()}
    return side_by_side(sides, length=length, batch_size=batch_size, rounds=rounds)


def _parity_rows(parities: dict[str, Parity], sizes: dict[str, int]) -> list[list[str]]:
    rows = [["", "MB", "largest difference", "of the largest output", "same answer"]]
    for name, parity in parities.items():
        same = "-" if parity.same is None else f"{100 * parity.same:.2f} %"
        share = f"{parity.difference / parity.scale:.1e}" if parity.scale else "-"
        rows.append([name, f"{sizes[name] / 1e6:,.1f}", f"{parity.difference:.1e}", share, same])
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters speak of packages they do without and of choices that are made here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
