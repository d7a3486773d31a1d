"""The files of a model's folder, checked before a library opens them.

A folder may come from anywhere. Nothing in it is run or allowed to ask; sizes are bounded before anything is allocated;
whatever else a library cannot read becomes one ``ConfigError``.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import constants, get_session
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils.hub import cached_file

from bertillery.config.section import ConfigError, InputError
from bertillery.models.encoders import Role, check_model_type, family, intermediate_size, longest_sequence
from bertillery.system.printable import first_line
from bertillery.system.records import read_json

Rows = Annotated[int, Field(ge=1, le=10_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=1_000)]
Heads = Annotated[int, Field(ge=1, le=1_024)]
Labels = Annotated[int, Field(ge=1, le=100_000)]
TokenId = Annotated[int, Field(ge=-1, le=10_000_000)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})$")]


class ConfigFile(BaseModel):
    """What a ``config.json`` may say, in the names of all families; keys that are not here are the library's to judge.

    ``None`` is what a file says that leaves a key out; the library's default acts then.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model_type: str
    architectures: list[str] | None = None
    vocab_size: Rows | None = None
    max_position_embeddings: Rows | None = None
    type_vocab_size: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    hidden_size: Width | None = None
    d_model: Width | None = None
    encoder_hidden_size: Width | None = None
    dim: Width | None = None
    embedding_size: Width | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    hidden_dim: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    encoder_ffn_dim: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    decoder_ffn_dim: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    num_hidden_layers: Layers | None = None
    n_layers: Layers | None = None
    encoder_layers: Layers | None = None
    decoder_layers: Layers | None = None
    num_hidden_groups: Layers | None = None
    inner_group_num: Layers | None = None
    num_attention_heads: Heads | None = None
    n_heads: Heads | None = None
    encoder_attention_heads: Heads | None = None
    decoder_attention_heads: Heads | None = None
    hidden_act: str | None = None
    activation: str | None = None
    activation_function: str | None = None
    summary_activation: str | None = None
    hidden_dropout_prob: Rate | None = None
    attention_probs_dropout_prob: Rate | None = None
    classifier_dropout: Rate | None = None
    classifier_dropout_prob: Rate | None = None
    summary_last_dropout: Rate | None = None
    dropout: Rate | None = None
    attention_dropout: Rate | None = None
    seq_classif_dropout: Rate | None = None
    qa_dropout: Rate | None = None
    layer_norm_eps: Small | None = None
    initializer_range: Small | None = None
    pad_token_id: TokenId | None = None
    num_labels: Labels | None = None
    id2label: dict[Number, str] | None = None
    label2id: dict[str, int] | None = None
    beam_size: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Of a head that finds both ends of an answer together."""
    chunk_size_feed_forward: Annotated[int, Field(ge=0, le=0)] | None = None
    """Above 0 the library splits padded batches of other shapes than ours."""


class TokenizerFile(BaseModel):
    """What a ``tokenizer_config.json`` may say; keys that are not here are the library's to judge."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    tokenizer_class: str | None = None
    auto_map: dict[str, Any] | list[str | None] | None = None
    model_max_length: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None


_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TOKENIZER_FILES: dict[str, Any] = {
    "tokenizer_config.json": TokenizerFile,
    "special_tokens_map.json": dict[str, Any],
    "added_tokens.json": dict[str, int],
}


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Let whatever a library raises, while it reads what others wrote, be one ``ConfigError`` that opens with ``what``.

    Damaged files end in errors of nearly every class, and of no class: a panic of a library written in Rust is a
    ``BaseException``.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except pickle.UnpicklingError as error:  # torch's text advises to run what is in the file
        said = "it is no file of tensors, or holds more than tensors, and nothing else in it is read"
        raise ConfigError(f"{what}: {said}; {remedy}") from error
    except BaseException as error:
        raise ConfigError(f"{what}: {first_line(error)}; {remedy}") from error


def safely(name: str) -> dict[str, Any]:
    """Arguments of every ``from_pretrained``: code in a folder is not run, nor is it asked for on standard input, which
    is the library's default; and nothing is asked of a Hub that does not answer."""
    return {"trust_remote_code": False, "local_files_only": Path(name).is_dir() or not _hub_answers()}


@cache
def _hub_answers() -> bool:
    """Ask once in a process: the library itself would try for half a minute, for each file anew."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whatever the network or the library's offline mode has to say, it comes down to no
        return False
    return True


def sentence_pooling(name: str) -> str:
    """What a sentence-transformers model does behind its encoder, such as ``Pooling (mean_tokens), Normalize``; empty
    for any other model. Only the encoder is read here."""
    file = file_of(name, "modules.json")
    if file is None:
        return ""
    with reading(f"{file}: cannot be read", "remove the file to use the encoder alone"):
        steps = []
        for module in json.loads(file.read_text(encoding="utf-8"))[1:]:
            settings = file_of(name, f"{module['path']}/config.json")
            values = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
            modes = [key.removeprefix("pooling_mode_") for key, value in values.items() if value is True]
            steps.append(module["type"].rpartition(".")[2] + (f" ({', '.join(modes)})" if modes else ""))
    return ", ".join(steps)


def file_of(name: str, file: str) -> Path | None:
    """A file of a model, in its folder or of the Hub, from where it is fetched; None where there is none."""
    if Path(name).is_dir():
        path = Path(name, file)
        return path if path.is_file() else None
    found = cached_file(
        name,
        file,
        local_files_only=not _hub_answers(),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def check_config_file(path: Path, roles: Sequence[Role]) -> None:
    """``InputError`` for a ``config.json`` that is damaged, of no family in one of the ``roles``, or absurdly large."""
    remedy = "give a folder that save_pretrained wrote, as export/ is"
    found = read_json(path, ConfigFile, remedy=remedy)
    check_model_type(found.model_type, roles)
    for key in ("hidden_act", "activation", "activation_function", "summary_activation"):
        name = getattr(found, key)
        if name is not None and name not in ACT2FN:
            raise ConfigError(f"{path}: {key}: {name!r} is no activation function that transformers has; {remedy}")
    for key, value in found.model_dump(include=found.model_extra).items():
        if key.endswith("_implementation") and "/" in str(value):
            raise ConfigError(f"{path}: {key}: {value!r} is code from elsewhere, which is not run; remove that line")
    if (found.model_extra or {}).get("quantization_config") is not None:
        raise ConfigError(
            f"{path}: quantization_config: quantized weights need a library of their own, and are not trained; give "
            "the model as it was before it was quantized"
        )
    if path.with_name("adapter_config.json").exists():
        raise ConfigError(f"{path.parent}: holds an adapter, not a model; merge it into its model and save that")


def check_config(name: str, config: PreTrainedConfig) -> None:
    """``ConfigError`` where the sizes that a configuration ends up with contradict each other."""
    kind, problems = family(config), []
    sizes: Any = config
    heads = getattr(sizes, "num_attention_heads", 1)
    if sizes.hidden_size % heads:
        problems.append(f"a hidden_size of {sizes.hidden_size} is not a multiple of num_attention_heads {heads}")
    if sizes.pad_token_id is None and kind.positions_after_padding:
        problems.append("pad_token_id is missing, behind which positions are counted")
    elif not -1 < (sizes.pad_token_id or 0) < sizes.vocab_size:
        problems.append(f"pad_token_id {sizes.pad_token_id} is no row of a vocabulary of {sizes.vocab_size}")
    elif longest_sequence(config) < 1:
        problems.append(f"max_position_embeddings {sizes.max_position_embeddings} leaves no position for a token")
    if problems:
        raise ConfigError(f"{name}: config.json: {'; '.join(problems)}; give a folder that save_pretrained wrote")


def check_size(name: str, config: PreTrainedConfig) -> None:
    """``ConfigError`` where the configuration describes more than the weights beside it, or this machine, can hold.

    For who is about to build the model: building it first would allocate whatever a damaged file asks for.
    """
    needed, files = encoder_size(config), weight_files(Path(name))
    held = sum(file.stat().st_size for file in files)
    if files and needed > held:  # a parameter takes a byte at least
        raise ConfigError(
            f"{name}: its weights cannot be read: they have {held:,} bytes, and config.json describes a model of "
            f"{needed:,} parameters; give a folder whose config.json and weights are whole and belong together"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * needed > memory:
        raise ConfigError(
            f"{name}: config.json describes a model of {needed:,} parameters, {4 * needed / 1e9:,.0f} GB in "
            f"float32, and this machine has {memory / 1e9:,.0f} GB of memory; give a smaller model"
        )


def encoder_size(config: Any) -> int:
    """Parameters of the matrices of embeddings and layers; what is around them is small, or drawn anew."""
    width = config.hidden_size
    if family(config).role == "encoder-decoder":
        if not hasattr(config, "encoder_ffn_dim"):  # recurrent
            inner = config.num_hidden_layers * (width**2 + config.encoder_hidden_size**2)
            return config.vocab_size * config.embedding_size + inner
        encoder = config.encoder_layers * (4 * width**2 + 2 * width * config.encoder_ffn_dim)
        decoder = config.decoder_layers * (8 * width**2 + 2 * width * config.decoder_ffn_dim)
        return (config.vocab_size + config.max_position_embeddings) * width + encoder + decoder
    inner = intermediate_size(config)
    narrow = getattr(config, "embedding_size", width)
    rows = config.vocab_size + config.max_position_embeddings + getattr(config, "type_vocab_size", 0)
    layers = config.num_hidden_layers
    if config.model_type == "albert":
        layers = config.num_hidden_groups * config.inner_group_num
    return rows * narrow + layers * (4 * width * width + 2 * width * inner)


def has_tokenizer(name: str) -> bool:
    """Whether there is a vocabulary: without one the library makes a tokenizer of nothing but special tokens."""
    return any(file_of(name, file) for file in _VOCABULARIES)


def check_tokenizer_files(name: str) -> None:
    """``InputError`` where the small files of a tokenizer are damaged, or it needs code of its own."""
    remedy = "give a directory that save_pretrained wrote"
    files = {file: path for file in _TOKENIZER_FILES if (path := file_of(name, file))}
    found = {file: read_json(path, _TOKENIZER_FILES[file], remedy=remedy) for file, path in files.items()}
    settings = found.get("tokenizer_config.json")
    if isinstance(settings, TokenizerFile) and settings.tokenizer_class:
        plain = settings.tokenizer_class.removesuffix("Fast")
        if not any(map(tokenizer_class_from_name, (settings.tokenizer_class, plain, f"{plain}Fast"))):
            raise ConfigError(
                f"{files['tokenizer_config.json']}: {settings.tokenizer_class!r} is no tokenizer of transformers, and "
                "code in a folder is not run; give a tokenizer of a class that transformers has"
            )


def weight_files(folder: Path) -> list[Path]:
    """What ``from_pretrained`` reads: safetensors where there are any."""
    return [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
