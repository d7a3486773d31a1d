"""A run of translation: the vocabulary, the model from its configuration, training, decoding, BLEU."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from safetensors.torch import load_file

from bertillery.config.section import ConfigError, InputError, describe, validate
from bertillery.config.types import Decay, Duration, Epsilon, Factor, LearningRate, Length, Runs, Tokens, Weight
from bertillery.models.encoders import longest_sequence
from bertillery.models.export import warnings_of_transformers
from bertillery.models.load import load_tokenizer, read_config
from bertillery.run.checkpoint import checkpoint_name, newest_whole
from bertillery.run.inputs import Fingerprint, model_inputs, tokenizer_input
from bertillery.run.stage import Parts, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.system.invocation import command_line
from bertillery.system.printable import printable
from finetune.config import FinetuneConfig, FinetuneOptimSection, FinetunePhase, FinetuneTrainSection, model_name
from finetune.stage import Finetuning, check_length
from translation.alignment import draw_alignments, draw_each
from translation.architecture import ExistingSection, ModelSection, RnnSection, TransformerSection
from translation.objective import ObjectiveSection, TranslationObjective
from translation.scores import looks_tokenized
from translation.search import DecodeSection
from translation.vocabulary import VocabularySection, check_alphabet, check_vocabularies, open_target, train_vocabulary

logger = logging.getLogger(__name__)


class TranslationOptimSection(FinetuneOptimSection):
    """The optimizer of Vaswani et al. 2017, section 5.3."""

    algorithm: Literal["bert_adam", "adamw", "lamb"] = "adamw"
    """``adamw``: torch's; ``bert_adam``: without bias correction; ``lamb``: for large batches."""
    learning_rate: LearningRate = 7e-4
    """Peak. With ``inverse_sqrt``, 1 / sqrt(width * warm-up) is the paper's schedule ("noam")."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay rates of the two moments."""
    epsilon: Epsilon = 1e-9
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.0
    """Decoupled; vectors are exempt."""
    max_gradient_norm: Factor = 1e9
    """Gradients are scaled down to this norm; by default never, as in the paper's code."""
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "inverse_sqrt"
    )
    """Shape of the learning rate after warm-up."""
    warmup: Duration = Duration("4000 steps")
    """Linear warm-up from 0."""


class TranslationPhase(FinetunePhase):
    """The batch: pairs of sentences, by default as many as fit into 4,096 tokens of both sides."""

    usual_batch: ClassVar[dict[str, int]] = {"batch_tokens": 4096}
    sequence_length: Tokens = 256
    """Most tokens of a source, and of a target."""


class TranslationTrainSection(FinetuneTrainSection):
    """Length and schedule of training."""

    steps: Length = Duration("20 epochs")
    """Length of the run: steps or epochs."""
    phases: list[TranslationPhase] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=[TranslationPhase()], min_length=1, max_length=1
    )
    """Batch and longest sentences."""
    average: Runs = 1
    """The exported weights are the mean of those of so many newest checkpoints (Vaswani et al. 2017, section 6.1)."""

    @model_validator(mode="after")
    def _keeps_what_is_averaged(self) -> TranslationTrainSection:
        if self.average > 1 and (self.keep < self.average or self.export != "last"):
            raise ValueError(
                f"average {self.average} needs the newest {self.average} checkpoints: give keep={self.average} or more "
                "and export=last"
            )
        return self


class TranslationConfig(FinetuneConfig):
    """Everything a run of translation is made from."""

    model: SerializeAsAny[ModelSection]  # pyright: ignore[reportIncompatibleVariableOverride]
    tokenizer: VocabularySection = VocabularySection()
    objective: ObjectiveSection = ObjectiveSection()
    decode: DecodeSection = DecodeSection()
    optim: TranslationOptimSection = TranslationOptimSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    train: TranslationTrainSection = TranslationTrainSection()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _has_one_vocabulary(self) -> TranslationConfig:
        if isinstance(self.model, ExistingSection) and self.tokenizer != VocabularySection():
            raise ValueError(f"tokenizer: {self.model.from_} has its own; leave these keys out")
        longest, asked = self.model.longest, self.train.phases[0].sequence_length
        if longest is not None and asked > longest:
            raise ValueError(
                f"train.phases: a sequence_length of {asked} is more than the model's max_position_embeddings {longest}"
            )
        if self.tokenizer.separate:
            self.model.check_separate()
        if isinstance(self.model, TransformerSection):
            self.objective.check_transformer()
        if self.run.sharding != "none":
            raise ValueError(f"run.sharding: given {self.run.sharding!r}; decoding needs whole weights: give none")
        return self

    @classmethod
    def describe(cls) -> dict[str, str]:
        """The keys of these runs that differ from those of other task types, by when they hold."""
        models = {
            " and model.architecture=transformer": TransformerSection,
            " and model.architecture=rnn": RnnSection,
            " and model.from": ExistingSection,
        }
        sections = "\n".join(
            describe(type(field.default), f"{name}.")
            for name, field in cls.model_fields.items()
            if name in cls.__annotations__ and name != "model"
        )
        usual, keys = describe(FinetuneConfig).split("\n"), sections.split("\n")
        shared = {*zip(usual[::2], usual[1::2], strict=True)}  # a key, and below it what it means
        own = [pair for pair in zip(keys[::2], keys[1::2], strict=True) if pair not in shared]
        return {", sections of the run": "\n".join("\n".join(pair) for pair in own)} | {
            when: describe(section, "model.") for when, section in models.items()
        }

    @classmethod
    def load(cls, values: dict[str, Any], sources: dict[str, str]) -> TranslationConfig:
        """From merged values. A run without a name is called ``<task>/<model>/seed-<seed>``."""
        if not values.get("model"):
            raise ConfigError(
                "translation needs a model: "
                + command_line("finetune", TASK="<name>", MODEL="<directory of a translation model>")
                + ", or in its place the name of a configuration in configs/translation"
            )
        if values.get("recipe", "auto") not in ("auto", "none"):
            raise ConfigError(f"recipe: given {values['recipe']!r}; recipes are for encoders: leave the key out")
        values["recipe"] = "none"
        config = validate(cls, values, sources)
        return config.named(f"{config.task.name}/{_called(config.model)}/seed-{config.run.seed}")


def _called(section: Any) -> str:
    return section.name or (model_name(section.from_) if isinstance(section, ExistingSection) else "model")


class Translating(Finetuning):
    """One run of a translation model."""

    config: TranslationConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    job = "translate"

    @property
    def model_name(self) -> str:
        """The name of the configuration, or of the model that is trained further."""
        return _called(self.config.model)

    def models(self) -> dict[str, Fingerprint]:
        """Of the model that is trained further, if there is one."""
        section = self.config.model
        return model_inputs(starting_weights=section.from_ if isinstance(section, ExistingSection) else None)

    def _tokenizer(self) -> Any:
        """The tokenizer of an existing model or of ``tokenizer.path``; None where one is trained on the rows."""
        config, section = self.config, self.config.model
        if not isinstance(section, ExistingSection):
            path = config.tokenizer.path
            return None if path is None else self._opened(path, "tokenizer.path")
        found = read_config(section.from_, roles=("encoder-decoder",))
        tokenizer = self._opened(section.from_, "model.from")
        check_vocabularies(tokenizer, self._translation.target_tokenizer, found, section.from_, "model.from")
        check_length(section.from_, found, config.train.phases[0].sequence_length)
        if hasattr(found, "encoder_ffn_dim"):
            config.objective.check_transformer()
        return tokenizer

    @property
    def _translation(self) -> Any:
        """The task type, which has the target's vocabulary."""
        return self.task_type

    def _opened(self, start: str, key: str) -> Any:
        """The tokenizer of a directory; the target's own, if there is one, goes to the task type."""
        tokenizer = load_tokenizer(start, key, role="encoder-decoder")
        target = open_target(start, tokenizer, key)
        if target is not None:
            self.config.model.check_separate()
        self._translation.set_target_tokenizer(target)
        return tokenizer

    def _fitted(self, tokenizer: Any) -> Any:
        """Trained on both languages where there is none yet; checked on them otherwise."""
        config, train = self.config, self.task.split("train")
        if train.labels is None:
            raise InputError(f"{config.task.name}: the split train has no column {config.task.label!r} to learn from")
        sides = {config.task.text[0]: [*train.texts[0]], config.task.label: [*train.labels]}
        if tokenizer is None and config.tokenizer.separate:
            tokenizer, target = (self._trained(language, texts) for language, texts in sides.items())
            self._translation.set_target_tokenizer(target)
        elif tokenizer is None:
            tokenizer = train_vocabulary([text for texts in sides.values() for text in texts], config.tokenizer)
        else:
            both = tokenizer, self._translation.target_tokenizer or tokenizer
            for each, (language, texts) in zip(both, sides.items(), strict=True):
                check_alphabet(each, texts, language, "tokenizer.path" if config.tokenizer.path else "model.from")
        if target := self._translation.target_tokenizer:
            self.pin(lambda: {"target tokenizer": tokenizer_input(target)["tokenizer"]})
        return tokenizer

    def _trained(self, language: str, texts: list[str]) -> Any:
        """A vocabulary of one side."""
        try:
            return train_vocabulary(texts, self.config.tokenizer)
        except ConfigError as error:
            raise ConfigError(f"{error} (that is {language}; tokenizer.separate trains one for each side)") from None

    def _examples(self, name: str, training: bool = False) -> Any:
        """The same, with the schedule of teacher forcing in training."""
        found: Any = super()._examples(name, training)
        teacher_forcing = self.config.objective.teacher_forcing
        found.teacher_forcing = teacher_forcing if training and not teacher_forcing.always else None
        self._warn(name, found)
        return found

    def _warn(self, name: str, examples: Any) -> None:
        """Of pairs that are cut or left out, and of references that BLEU is not for."""
        if examples.num_cut:
            length = self.config.train.phases[0].sequence_length
            how = "left out" if name == "train" else "cut"
            logger.warning("%s: %d pairs have more than %d tokens on a side; %s", name, examples.num_cut, length, how)
        if name != "train" and examples.labels is not None and looks_tokenized(examples.labels.tolist()):
            logger.warning(
                '%s: the references look tokenised (" .", " ,"); BLEU is for text as people write it, and these scores '
                "are not comparable with published ones; give detokenised files",
                name,
            )  # fmt: skip

    def _objective(self) -> Any:
        with warnings_of_transformers():
            model = self.config.model.build(self.tokenizer, self._translation.target_tokenizer)
        self.decode = self.config.decode.within(longest_sequence(model.config))
        return TranslationObjective(model, self.config.objective, self.decode.model_copy(update={"beam": 1}))

    def banner(self, trainer: Trainer) -> str:
        """Model, vocabulary, rates and one pair."""
        config, model = self.config, self.accelerator.unwrap_model(trainer.objective).exported()
        examples = trainer.sources[0]
        tokenizers = [examples.tokenizer, examples.target_tokenizer]
        ids = [
            side.take(examples.examples(0, 0)["index"][:1])[0].tolist() for side in (examples.source, examples.target)
        ]
        shown = [
            "  " + printable(" ".join(tokenizer.convert_ids_to_tokens(each)))
            for tokenizer, each in zip(tokenizers, ids, strict=True)
        ]
        pieces = " and ".join(f"{number:,}" for number in map(len, dict.fromkeys(tokenizers)))
        return (
            f"model       {type(model).__name__}, {model.num_parameters():,} parameters, {pieces} pieces\n"
            f"            learning rate {config.optim.learning_rate:g}, batches of {config.train.phases[0]}, "
            f"{config.train.steps}\n\nfirst pair\n" + "\n".join(shown)
        )

    def about(self) -> str:
        """What the model is, for its card."""
        section, config = self.config.task, self.config
        start = config.model.from_ if isinstance(config.model, ExistingSection) else (config.model.name or "a model")
        return f"{start}, trained to translate {section.text[0]} to {section.label} on {section.name}"

    def scored(self) -> list[str]:
        """The validation splits, and test splits with references."""
        labelled = [name for name, examples in self.test.items() if examples.labels is not None]
        return [*self.config.task.validation, *labelled]

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Average checkpoints, translate all splits, export."""
        objective = self.accelerator.unwrap_model(trainer.objective)
        newest = newest_whole(self.directory.checkpoints, 1)
        if self.config.train.average > 1 and [path.name for path in newest] == [checkpoint_name(ended.step)]:
            self._average(objective)
        objective.decoding = self.decode  # evaluations in training are greedy
        self.decode.write_to(objective.exported().generation_config)
        results = super().result(trainer, ended)
        return results and results | {"perplexity": self._perplexities(), "decode": self.config.decode.model_dump()}

    def _perplexities(self) -> dict[str, float]:
        """Of the references, by split."""
        return {name: means["perplexity"] for name, means in self.means.items() if "perplexity" in means}

    def _average(self, objective: Any) -> None:
        """Load the mean of the newest checkpoints' weights."""
        wanted = self.config.train.average
        found = newest_whole(self.directory.checkpoints, wanted)
        if len(found) < wanted:
            raise InputError(
                f"{self.directory.checkpoints}: {len(found)} whole checkpoints, and train.average={wanted}; give "
                "train.save_every=<a shorter interval>, or a smaller average"
            )
        read = [load_file(path / "model.safetensors") for path in found]
        state = objective.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in read[0]:
                if state[name].requires_grad:  # sinusoids stay what they are, to the bit
                    state[name].copy_(torch.stack([each[name] for each in read]).mean(0))

    def _trainer(self, parts: Parts) -> Trainer:
        """The same; ``ConfigError`` where fewer checkpoints will be written than are averaged."""
        trainer, wanted = super()._trainer(parts), self.config.train.average
        schedule, last = trainer.schedule, trainer.schedule.total
        written = {last, *range(schedule.save, last, schedule.save), *range(schedule.evaluate, last, schedule.evaluate)}
        if len(written) < wanted:
            raise ConfigError(
                f"train.average: given {wanted}, and {len(written)} checkpoints are written in {last:,} steps; give a "
                "smaller train.average, or a shorter train.save_every"
            )
        return trainer

    def table(self, results: dict[str, Any]) -> str:
        """The scores, how they were computed, and the perplexity of the references."""
        return "\n\n".join([super().table(results), *self.task_type.notes(self.predicted, self.means)])

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """The same, and what the decoder attends to."""
        super().show(trainer, ended, tracker, results)
        with beside(f"pictures of the attention in {self.path}"):
            objective, name = trainer.assembled(), self.config.task.validation[0]
            examples: Any = self.validation[name]
            for path in draw_alignments(objective.exported(), examples, self.path):
                tracker.image(path.stem, path, ended.step)
            if tracker.shows:
                self._show_attention(tracker, objective.exported(), ended.step)

    def _show_attention(self, tracker: Tracker, model: Any, step: int) -> None:
        """A table of some translations, each with its picture."""
        name, kind = self.config.task.validation[0], self.task_type
        found, examples = self.predicted[name], self.validation[name]
        with TemporaryDirectory() as folder:
            rows = [
                {
                    "source": kind.format_text(found.split.texts[0][index]),
                    "reference": kind.format_label(found.labels[index]),
                    "translation": kind.format_prediction(found.predictions[index]),
                    "attention": picture,
                }
                for index, picture in draw_each(model, examples, Path(folder)).items()  # pyright: ignore
            ]
            tracker.table("translations", rows, step)

    def next_command(self, results: dict[str, Any]) -> str:
        """Translate something."""
        text = self.task.split(self.config.task.validation[0]).texts[0][0] if hasattr(self, "task") else "..."
        return command_line("translate", MODEL=self.path / "export", TEXT=printable(text)[:80])
