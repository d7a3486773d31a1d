"""The range test of pretraining."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.pretrain_rates import main
from tests.corpora import write_text

CONFIG = """
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 64}
tokenizer: {vocab_size: 200}
data: {holdout: 0.2}
objective: {type: mlm}
train: {steps: 12, phases: [{batch_size: 8, sequence_length: 32}]}
run: {threads: 1, device: cpu, precision: fp32}
"""


def test_it_leaves_numbers_and_a_picture(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    write_text(tmp_path / "text.txt")
    places = [f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data", f"data.path={tmp_path}/text.txt"]
    assert main([str(tmp_path / "tiny.yaml"), *places, "lowest=1e-4", "highest=1", "steps=30"]) == 0
    folder = tmp_path / "runs/pretrain/tiny-rate-range"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "lock", "rates.jsonl", "rate_range.png"}
    rows = [json.loads(line) for line in (folder / "rates.jsonl").read_text().splitlines()]
    assert min(row["smoothed"] for row in rows) < rows[0]["smoothed"] - 0.1
