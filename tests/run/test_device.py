"""Device, precision, threads and memory of a run."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from bertillery.config.section import ConfigError, validate
from bertillery.run import device as devices
from bertillery.run.device import RunSection, choose_precision, keep_large_blocks, start_accelerator


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch):
    for native, chosen in [(True, "bf16"), (False, "fp32")]:
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda native=native: native)
        assert choose_precision("auto", on_gpu=False)[0] == chosen
        assert choose_precision("bf16", on_gpu=False)[0] == "bf16"
        assert choose_precision("fp32", on_gpu=False)[0] == "fp32"
    assert choose_precision("auto", on_gpu=False)[1] == "this CPU does not multiply bfloat16 natively"
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, check)
    assert choose_precision("auto", on_gpu=False)[0] == "fp32"


def test_accelerator_on_cpu(caplog: pytest.LogCaptureFixture):
    threads = torch.get_num_threads()
    try:
        with caplog.at_level("INFO", logger="bertillery.run.device"):
            section = validate(RunSection, {"device": "cpu", "precision": "bf16", "threads": 1})
            accelerator = start_accelerator(section)
        assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "bf16")
        assert torch.get_num_threads() == 1
        assert "precision bf16 (as configured; this CPU" in caplog.text
    finally:
        torch.set_num_threads(threads)
        accelerator_state_reset()


def test_accelerate_is_told_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """Left to itself it would not see the other processes of torchrun on a machine without a GPU."""
    told = []

    def accelerator(**options: object) -> Accelerator:
        told.append(options["cpu"])
        return Accelerator(cpu=True)

    monkeypatch.setattr(devices, "Accelerator", accelerator)
    try:
        for available, device in [(False, "auto"), (True, "cpu"), (True, "auto")]:
            monkeypatch.setattr(torch.accelerator, "is_available", lambda available=available: available)
            start_accelerator(validate(RunSection, {"device": device, "precision": "fp32"}))
    finally:
        accelerator_state_reset()
    assert told == [True, True, False]


def accelerator_state_reset() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def test_large_blocks_can_be_kept_or_it_does_nothing(monkeypatch: pytest.MonkeyPatch):
    keep_large_blocks()
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(devices.ctypes, "CDLL", None)
    keep_large_blocks()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(
        ConfigError, match=r"8 processes on this machine: given 8 GPUs, but this machine has 4; give GPUS=4"
    ):
        start_accelerator(RunSection())
