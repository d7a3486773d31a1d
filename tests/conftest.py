"""What every test starts from."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _no_accelerator_yet() -> None:
    """Accelerate keeps one state per process; a test must not meet the one of the test before it."""
    AcceleratorState._reset_state(True)
