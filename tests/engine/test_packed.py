"""Compressed files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import zstandard

from engine.packed import open_packed


def test_a_little_is_unpacked_at_a_time(tmp_path: Path) -> None:
    """What repeats itself is thousands of times as long as its file, and is never held whole."""
    size = 1 << 26
    (tmp_path / "a.zst").write_bytes(zstandard.compress(bytes(size)))
    assert (tmp_path / "a.zst").stat().st_size < size / 10_000
    tracemalloc.start()
    with open_packed(tmp_path / "a.zst") as stream:
        assert sum(len(part) for part in iter(lambda: stream.read(1 << 16), b"")) == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2
