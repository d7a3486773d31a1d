"""``python -m deploy.onnx model=<directory> key=value``: exports a stock model to ONNX, in float32 and in 8 bits.

Writes ``<directory>/onnx/model.onnx`` and ``model_int8.onnx``, both for any batch size and sequence length. Nothing is
written if the float32 model differs from the one in PyTorch by more than rounding; the table shows how far the 8-bit
model is off. Then all three are timed.
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

from bertillery.config.section import InputError
from bertillery.models.encoders import longest_sequence
from bertillery.models.load import open_stock
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.system.files import publish, remove
from bertillery.system.invocation import installing
from deploy.timing import SpeedSection, forward, has_choices, speed_rows, stock_inputs

_TOLERANCE = 1e-4
"""Largest difference that counts as rounding, as a share of the model's largest output."""
_LARGEST = 2**31 - 1
"""Bytes of an ONNX file."""
_BASE, _FLOAT, _INT8 = "PyTorch", "ONNX float32", "ONNX int8"


class OnnxSection(SpeedSection):
    """Keys of an export."""

    model: Path
    """Directory of the model."""


def main(arguments: Sequence[str]) -> int:
    """Export, compare, time and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=OnnxSection, action=_run)


def _run(section: OnnxSection) -> int:
    _check_packages()
    model = open_stock(section.model)
    lengths, notes = section.fitting(longest_sequence(model.config))
    folder = section.model / "onnx"
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir()
    files = {_FLOAT: partial / "model.onnx", _INT8: partial / "model_int8.onnx"}
    rows = [["", "MB", "largest difference", "of the largest output", "same answer"]]
    try:
        export(model, files[_FLOAT])
        quantize(files[_FLOAT], files[_INT8])
        sessions = {name: Session(file) for name, file in files.items()}
        for name, session in sessions.items():
            parity = compare(model, session)
            if name == _FLOAT and not parity.holds:
                raise InputError(
                    f"{section.model}: the exported model is off by {parity.difference:.1e} where the largest output "
                    f"of the model is {parity.scale:.1e}, more than rounding ({_TOLERANCE:.0e}); nothing was written. "
                    "Use the model in PyTorch, or try other versions of torch and onnx"
                )
            rows.append([name, f"{files[name].stat().st_size / 1e6:,.1f}", *parity.cells()])

        def sides(batch_size: int, length: int) -> dict[str, Callable[[], object]]:
            inputs = stock_inputs(model, batch_size, length)
            prepared = {name: session.prepare(inputs) for name, session in sessions.items()}
            return {_BASE: forward(model, batch_size, length), **prepared}

        speeds = section.measure(sides, lengths)
        publish(partial, folder)
    finally:
        remove(partial)
    print("\n" + "\n\n".join([markdown_table(rows), markdown_table(speed_rows(speeds, _BASE)), *notes]))
    print(
        f"\nCPU, threads of each: {torch.get_num_threads()}; random tokens of the vocabulary.\n\n"
        f"float32     {folder / 'model.onnx'}\nint8        {folder / 'model_int8.onnx'}\n\n"
        f"to use      {_usage(model, folder / 'model.onnx')}"
    )
    return 0


def _usage(model: PreTrainedModel, file: Path) -> str:
    """A line of Python that tokenizes texts and runs the file. It does not depend on the tokenizer's own settings."""
    types = "token_type_ids" in stock_inputs(model, 1, 2)
    options = f"padding=True, truncation=True, return_token_type_ids={types}, return_tensors='np'"
    inputs = f"dict(tokenizer(texts, {options}))"
    if has_choices(model):
        inputs = (
            f"{{name: value[None] for name, value in tokenizer([text] * len(choices), choices, {options}).items()}}"
        )
    return f"onnxruntime.InferenceSession({str(file)!r}).run(None, {inputs})"


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"not installed: {', '.join(missing)}; install what is missing with {installing('onnx', 'onnx MODEL=...')}"
        )


def export(model: PreTrainedModel, file: Path) -> None:
    """Write the model with its own names of inputs and outputs, for any batch size and sequence length.

    Raises ``InputError`` for a model that is too large for one file.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > _LARGEST:
        raise InputError(f"a model of {size / 1e9:.1f} GB does not fit into an ONNX file, which holds 2 GiB")
    inputs = stock_inputs(model, 2, min(8, longest_sequence(model.config)), padded=True)
    axes = [Dim("batch"), Dim("sequence")]
    if inputs["input_ids"].ndim == 3:
        axes.insert(1, Dim("choices"))
        inputs = {name: value.expand(-1, 2, -1).contiguous() for name, value in inputs.items()}  # a 1 were a constant
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
    """Write the exported model with matrices and embeddings in 8 bits; activations are scaled dynamically."""
    quantization = importlib.import_module("onnxruntime.quantization")
    model = importlib.import_module("onnx").load(file)
    del model.graph.value_info[:]  # the quantizer transposes matrices, which contradicts shapes inferred before
    with _quiet():
        quantization.quantize_dynamic(model, quantized, weight_type=quantization.QuantType.QInt8)


class Session:
    """An exported model, run on the CPU with as many threads as torch has."""

    def __init__(self, file: Path) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def prepare(self, inputs: dict[str, Tensor]) -> Callable[[], list[np.ndarray]]:
        """A function that runs the model over these inputs."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return lambda: self._session.run(None, arrays)


@dataclass(frozen=True)
class Parity:
    """Differences of an exported model from the one in PyTorch, over batches of several shapes."""

    difference: float
    """The largest of all outputs."""
    scale: float
    """The largest absolute output of the model in PyTorch."""
    same: float | None
    """Share of sequences, or of tokens, with the same largest output; None for a single output."""

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding; NaN is not."""
        return self.difference <= _TOLERANCE * self.scale

    def cells(self) -> list[str]:
        """Difference, difference relative to the largest output, and share of same answers."""
        relative = f"{self.difference / self.scale:.1e}" if self.scale else "-"
        return [f"{self.difference:.1e}", relative, "-" if self.same is None else f"{100 * self.same:.2f} %"]


def compare(model: PreTrainedModel, session: Session) -> Parity:
    """Run both over short and long, single and padded batches."""
    longest = longest_sequence(model.config)
    shapes = {(b, min(length, longest)) for b, length in ((1, 1), (1, 7), (2, 16), (7, 33), (128, 32), (3, longest))}
    difference, scale, same = 0.0, 0.0, []
    for batch_size, length in sorted(shapes):
        inputs = stock_inputs(model, batch_size, length, padded=True)
        real = inputs["attention_mask"].bool().numpy()
        for ours, theirs in zip(_outputs(model, inputs).values(), session.prepare(inputs)(), strict=True):
            of_tokens = ours.ndim >= 2 and ours.shape[:2] == real.shape  # outputs at padding do not count
            a, b = (ours[real], theirs[real]) if of_tokens else (ours, theirs)
            difference = float(np.maximum(difference, np.abs(a - b).max()))  # keeps NaN
            scale = max(scale, float(np.abs(a).max()))
            if a.ndim == 2 and a.shape[1] > 1:
                same.append(a.argmax(1) == b.argmax(1))
    return Parity(difference, scale, float(np.concatenate(same).mean()) if same else None)


def _outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {name: value.numpy() for name, value in model(**inputs).items() if isinstance(value, Tensor)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which warn of missing optional packages and of choices made here on purpose."""
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
