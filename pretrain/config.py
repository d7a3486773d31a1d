"""Configuration of a pretraining run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pydantic import SerializeAsAny, create_model, model_validator

from bertillery.config.section import check_sections, read_values, validate
from bertillery.data.corpus import CorpusSection
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.objective import objective_module
from bertillery.run.command import run_name
from bertillery.run.stage import StageConfig
from pretrain.initialization import ObjectiveSection, adopt
from pretrain.model import ModelSection


class PretrainConfig(StageConfig):
    """Everything a pretraining run is made from. Defaults are BERT-Base, uncased, as published."""

    data: CorpusSection = CorpusSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    objective: SerializeAsAny[ObjectiveSection]
    """``type`` names a file in ``pretrain/objectives``; the other keys are that file's ``Config``."""

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
    check_sections(PretrainConfig, values, sources)
    values.setdefault("objective", {}).setdefault("type", "bert")
    module = objective_module("pretrain.objectives", values["objective"])
    adopt(values, sources, module.Config)
    schema = create_model("PretrainConfig", __base__=PretrainConfig, objective=(module.Config, ...))
    config = validate(cast(type[PretrainConfig], schema), values, sources)
    return config.named(run_name(arguments, otherwise=config.objective.model_dump()["type"]))


def objective_of(config: PretrainConfig) -> Any:
    """The module of the configured objective."""
    return objective_module("pretrain.objectives", config.objective.model_dump())
