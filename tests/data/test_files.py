"""Compressed files."""

from __future__ import annotations

import gzip
import lzma
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from bertillery.config.section import InputError
from bertillery.data.files import MAX_ROW, open_compressed


def test_a_little_is_unpacked_at_a_time(tmp_path: Path) -> None:
    """What repeats itself is thousands of times as long as its file, and is never held whole."""
    size = 60_000_000
    (tmp_path / "a.zst").write_bytes(zstandard.compress(bytes(size)))
    assert (tmp_path / "a.zst").stat().st_size < size / 10_000
    tracemalloc.start()
    with open_compressed(tmp_path / "a.zst") as stream:
        assert sum(len(part) for part in iter(lambda: stream.read(1 << 16), b"")) == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_what_unpacks_to_far_more_than_text_does_is_refused(suffix: str, tmp_path: Path) -> None:
    """Before it is read to its end: a few kilobytes stand for hours of blank lines."""
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[suffix]
    bomb, text = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.jsonl{suffix}"
    bomb.write_bytes(pack(b"\n" * (2 * MAX_ROW)))
    with open_compressed(bomb) as stream:
        parts = map(len, iter(lambda: stream.read(1 << 20), b""))
        with pytest.raises(InputError, match=r"decompresses to more than 1,000 times its size.*decompress it"):
            sum(parts)
    lines = b"".join(b"%d\n" % n for n in range(300_000))
    text.write_bytes(pack(lines))
    with open_compressed(text) as stream:
        assert [*stream] == lines.splitlines(keepends=True)
