"""Configuration of a pretraining run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import SerializeAsAny, create_model, model_validator

from engine.config import Section, read_values, validate
from engine.fit import TrainSection
from engine.objective import objective_module
from engine.optim import OptimSection
from engine.run import RunSection
from engine.tracking import TrackingSection
from pretrain.corpus import CorpusSection
from pretrain.model import ModelSection
from pretrain.start import adopt
from pretrain.tokenizer import TokenizerSection

RESUMABLE = ("run.name", "run.dir", "run.data_dir", "run.threads", "run.device", "tracking", "train.micro_batch_tokens",
             "train.workers", "train.log_every", "train.save_every", "train.keep")  # fmt: skip
"""Keys that may change when a run is resumed: they change nothing but rounding, speed and what is written."""


class PretrainConfig(Section):
    """Everything a pretraining run is made from. Defaults are BERT-Base, uncased, as published."""

    run: RunSection = RunSection()
    data: CorpusSection = CorpusSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    objective: SerializeAsAny[Section]
    """``type`` names a file in ``pretrain/objectives``; the other keys are that file's ``Config``."""
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _sequences_fit(self) -> PretrainConfig:
        longest = max(phase.sequence_length for phase in self.train.phases)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"train.phases: a sequence_length of {longest} is above model.max_position_embeddings "
                f"{self.model.max_position_embeddings}; shorten it, or enlarge the position table"
            )
        if min(phase.sequence_length for phase in self.train.phases) < 8:
            raise ValueError("train.phases: a sequence_length below 8 leaves no room for a pair; give at least 8")
        return self


def load_config(arguments: Sequence[str]) -> PretrainConfig:
    """Read ``*.yaml`` files and ``key.sub=value`` overrides; raises ``ConfigError`` with all problems at once.

    A run without a name is called after the configuration files; what the weights of ``model.from`` decide is filled
    in.
    """
    values, sources = read_values(arguments)
    values.setdefault("objective", {}).setdefault("type", "bert")
    module = objective_module("pretrain.objectives", values["objective"])
    adopt(values, sources, module.Config)
    schema = create_model("PretrainConfig", __base__=PretrainConfig, objective=(module.Config, ...))
    config = validate(cast(type[PretrainConfig], schema), values, sources)
    if config.run.name is None:
        names = [Path(argument).stem for argument in arguments if argument.endswith((".yaml", ".yml"))]
        run = config.run.model_copy(update={"name": "-".join(names) or config.objective.model_dump()["type"]})
        config = config.model_copy(update={"run": run})
    return config


def objective_of(config: PretrainConfig) -> Any:
    """The module of the configured objective."""
    return objective_module("pretrain.objectives", config.objective.model_dump())
