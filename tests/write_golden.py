"""``python -m tests.write_golden``: write the losses that ``test_golden_losses`` compares with."""

from __future__ import annotations

import json

import torch
from accelerate import Accelerator

from bertillery.engine.objective import objective_module
from tests.pretrain.test_objectives import GOLDEN, HOLDS_FOR, OBJECTIVES, TOLERANCE, golden_losses

if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for name in OBJECTIVES:
        kind = objective_module("pretrain.objectives", {"type": name})
        path = GOLDEN / f"{name}.json"
        content = {"holds_for": HOLDS_FOR, "tolerance": TOLERANCE, "losses": golden_losses(kind, Accelerator(cpu=True))}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {path}")
