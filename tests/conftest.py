"""What every test starts from."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Accelerate keeps one state per process; neither a test nor a fixture of a whole module may meet an older one."""
    AcceleratorState._reset_state(True)
