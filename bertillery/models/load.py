"""A stock model of transformers from a directory or the Hub, ready for packed batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

from bertillery.config.section import ConfigError, InputError
from bertillery.models.encoders import Role, family
from bertillery.models.export import warnings_of_transformers
from bertillery.models.folder import (
    check_config,
    check_config_file,
    check_size,
    check_tokenizer_files,
    file_of,
    has_tokenizer,
    reading,
    safely,
    sentence_pooling,
)
from bertillery.models.joint_spans import joint_head
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.prepare import prepare_layers
from bertillery.system.invocation import by_make, command_line

FIRST = Path("runs/pretrain/bert_docs/export")
"""What ``make pretrain`` leaves; other targets take it where no ``MODEL`` is given."""

_SPECIAL_TOKENS: dict[Role, tuple[tuple[str, ...], str]] = {
    "encoder": (("cls", "sep", "mask", "pad"), "a BERT-like tokenizer, with cls, sep, mask and pad"),
    "decoder": (("eos",), "one of a causal model, with an end-of-text token (eos_token)"),
    "encoder-decoder": (("pad", "eos"), "a tokenizer with both, which begin and end a translation"),
}
"""What a model of a role needs, and how that is said."""


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint and the model asked for differ."""

    fresh: tuple[str, ...]
    """Parameters that the checkpoint lacks, drawn anew from torch's global generator: the head, a pooler."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the model has no place for, such as another head."""
    warnings: tuple[str, ...]
    """Whatever else transformers warned of."""
    pooling: str = ""
    """What a sentence-transformers model does behind its encoder, which is not used."""

    def __str__(self) -> str:
        parts = [f"newly initialised: {_some(self.fresh)}"] if self.fresh else []
        parts += [f"not used: {_some(self.unused)}"] if self.unused else []
        parts = parts or ["all weights are the checkpoint's"]
        if self.pooling:
            parts.append(f"of this sentence-transformers model the encoder alone is used, without {self.pooling}")
        return "; ".join(parts)


def read_config(name: str | Path, folder: str = "", *, roles: Sequence[Role] = ("encoder",)) -> PreTrainedConfig:
    """The configuration of a model in a directory or on the Hub, or in a ``folder`` there; raises what :func:`load`
    does."""
    return _configuration(str(name), {}, folder, roles=roles)


def load(
    model_class: Any,
    name: str | Path,
    *,
    hidden_dropout: float | None = None,
    attention_dropout: float | None = None,
    classifier_dropout: float | None = None,
    random: bool = False,
    roles: Sequence[Role] = ("encoder",),
    **settings: Any,
) -> tuple[PreTrainedModel, LoadReport]:
    """Load ``AutoModelFor...`` or a model class, in float32 and in evaluation mode, with the packed attention.

    ``name`` is a directory that ``save_pretrained`` wrote or a name on the Hub. The dropouts replace those of the
    model's configuration under the names of its family, and ``settings`` (``num_labels=3``) what they name. A head of
    another shape is drawn anew; with ``random`` all is.

    Raises ``ConfigError`` if there is no such model, its family is unknown or has none of the ``roles``, weights of its
    body are missing or of another shape, or a setting is unknown.
    """
    name = str(name)
    config = _configuration(name, settings, roles=roles)
    if hasattr(model_class, "base_model_prefix") and not isinstance(config, model_class.config_class):
        raise ConfigError(f"{name}: a model of type {config.model_type!r}, which {model_class.__name__} is not for")
    config.architectures = settings.get("architectures")  # the class that is asked for decides, not what was saved
    dropouts = {
        "hidden_dropout": hidden_dropout,
        "attention_dropout": attention_dropout,
        "classifier_dropout": classifier_dropout,
    }
    for dropout, probability in dropouts.items():
        for key in getattr(family(config), dropout) if probability is not None else ():
            setattr(config, key, probability)
    check_size(name, config)
    if random:
        options = {"attn_implementation": NAME, "dtype": torch.float32, "trust_remote_code": False}
        model = model_class.from_config(config, **options).eval()
        prepare_layers(model)
        return model, LoadReport(fresh=tuple(name for name, _ in model.named_parameters()), unused=(), warnings=())
    options = {"attn_implementation": NAME, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    with warnings_of_transformers() as warnings:
        model, info = read_weights(model_class, name, config, what=f"{name}: its weights", **options)
    report = LoadReport(
        fresh=tuple(sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})),
        unused=tuple(sorted(info["unexpected_keys"])),
        warnings=tuple(warning for warning in warnings if "LOAD REPORT" not in warning),
        pooling=sentence_pooling(name),
    )
    _check(name, model, report, info["mismatched_keys"])
    check_finite(name, model)
    prepare_layers(model)
    return model, report


def read_weights(
    model_class: Any, name: str, config: PreTrainedConfig, *, what: str, folder: str = "", **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model of this class and configuration with the weights that ``name`` names, and transformers' report of them:
    the one place where weights of a model directory are read. Raises ``ConfigError`` that opens with ``what``."""
    with reading(f"{what} cannot be read", "save the model again"):
        model, info = model_class.from_pretrained(
            name, config=config, subfolder=folder, output_loading_info=True, **options, **safely(name)
        )
    return model, info


def load_encoder_decoder(name: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """An encoder-decoder, with entries of its configuration replaced, as :func:`load` opens an encoder; raises the
    same. All of its weights are the checkpoint's."""
    config = _configuration(name, dict(settings), roles=("encoder-decoder",))
    check_size(name, config)
    with warnings_of_transformers():
        model, info = read_weights(
            AutoModelForSeq2SeqLM, name, config, what=f"{name}: its weights",
            attn_implementation=NAME, dtype=torch.float32,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"{name}: its weights lack {_some(missing)}; give a folder that save_pretrained wrote")
    check_finite(name, model)
    for module in model.modules():
        if isinstance(module, MarianSinusoidalPositionalEmbedding | PegasusSinusoidalPositionalEmbedding):
            module.requires_grad_(False)  # frozen in a new model, and not in one that from_pretrained has read
    prepare_layers(model)
    return model


def open_stock(folder: Path) -> PreTrainedModel:
    """The model of a directory that ``save_pretrained`` wrote, in evaluation mode, as ``from_pretrained`` gives it.

    Raises ``InputError`` where there is none, it is of no known family, or its files lack a weight: a head drawn anew
    would be measured, but scored by a card that speaks of another.
    """
    if not (folder / "config.json").is_file():
        what = "no config.json in this folder" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; give a model directory, such as the export/ of a run")
    config: Any = read_config(folder)
    if joint_head(config):
        raise InputError(
            f"{folder}: its joint head for answers is none of transformers' own, and is neither compared nor exported "
            "to ONNX; fine-tune with task.spans.head=independent"
        )
    name = (config.architectures or [""])[0]
    found = getattr(transformers, name, None)
    model_class: Any = found if isinstance(found, type) and issubclass(found, PreTrainedModel) else AutoModel
    check_size(str(folder), config)
    with warnings_of_transformers():
        model, info = read_weights(model_class, str(folder), config, what=f"{folder}: its weights")
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{folder}: config.json says {name or 'nothing of a head'}, but the weights lack {', '.join(missing[:4])}; "
            "give a folder whose config.json and weights belong together"
        )
    return model.eval()


def _check_there(name: str, key: str = "") -> None:
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        made = f" (`{command_line('pretrain', CONFIG='bert_docs')}` makes it)" * (Path(name) == FIRST)
        raise ConfigError(
            f"{key}{name}: no such folder{made}; give one that save_pretrained wrote, or a name on the Hub"
        )


def _not_found() -> str:
    off = f"is switched off (HF_HUB_OFFLINE=1{'; with make, HUB=1 switches it on' * by_make()})"
    hub = off if constants.HF_HUB_OFFLINE else "cannot be reached"
    return f"no such folder, no model downloaded before, and the Hub {hub}"


def _configuration(name: str, settings: dict[str, Any], folder: str = "", *, roles: Sequence[Role]) -> PreTrainedConfig:
    _check_there(name)
    remedy = "give a folder that save_pretrained wrote, as export/ is, or a name on the Hub (offline: a downloaded one)"
    with warnings_of_transformers(), reading(name, remedy):
        file = file_of(name, str(Path(folder, "config.json")))
        if file is None:
            reason = "no config.json in this folder" if Path(name).is_dir() else _not_found()
            reason += f" (did you mean {Path(name) / 'export'}?)" * (Path(name) / "export").is_dir()
            raise ConfigError(f"{Path(name, folder)}: {reason}; {remedy}")
        check_config_file(file, roles)
        config: Any
        config, unknown = AutoConfig.from_pretrained(
            name, subfolder=folder, return_unused_kwargs=True, **safely(name), **settings
        )
        config.to_json_string()  # what cannot be written again would end an export
        check_config(name, config)
    unknown = sorted({*unknown} & {*settings})
    if unknown:
        raise ConfigError(f"{name}: {type(config).__name__} knows no {', '.join(unknown)}")
    return config


def _check(name: str, model: PreTrainedModel, report: LoadReport, mismatched: Any) -> None:
    """Heads may be new, and BERT's pooler, which a masked language model lacks; the rest of the encoder may not."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    mismatched = [(key, a, b) for key, a, b in sorted(mismatched) if key.startswith(prefix)]
    if mismatched:
        shapes = [f"{key} is {tuple(a)}, not {tuple(b)}" for key, a, b in mismatched]
        raise ConfigError(
            f"{name}: weights of another shape than config.json says: {_some(shapes)}; "
            "give a folder whose config.json and weights belong together"
        )
    missing = [key for key in report.fresh if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    if missing:
        raise ConfigError(
            f"{name}: weights and configuration do not fit: the weights lack {_some(missing)} of a "
            f"{model.config.model_type} model and hold {_some(report.unused) or 'nothing else'}; "
            "give a folder whose config.json and weights belong together"
        )


def check_finite(name: str, model: torch.nn.Module) -> None:
    """Raise ``ConfigError`` where a tensor of the weights that ``name`` names is not finite: no training mends that."""
    broken = [each for each, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConfigError(
            f"{name}: its weights are not finite: {_some(broken)} hold not-a-number or infinity; give others"
        )


def _some(names: Any) -> str:
    return ", ".join(names[:4]) + f" and {len(names) - 4} more" * (len(names) > 4)


def load_carried(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Load in place what an earlier stage left beside the model ``name`` (``bertillery.models.export``); of each,
    what was loaded.

    A module that is not there, or of other sizes than now, keeps its fresh weights. Raises ``ConfigError`` for a file
    that cannot be read.
    """
    said = []
    for stem, module in modules.items():
        file, wanted = file_of(name, f"{stem}.safetensors"), module.state_dict()
        if file is None:
            said.append(f"{stem} drawn anew, since there is none beside it")
            continue
        with reading(f"{file}: cannot be read", "distil the student again, or remove the file to begin without it"):
            found = load_file(file)
        shapes, now = ({key: tuple(tensor.shape) for key, tensor in each.items()} for each in (found, wanted))
        if shapes == now:
            module.load_state_dict(found)
            said.append(f"{stem} from {file}")
        else:
            said.append(f"{stem} drawn anew: it is {now} here and {shapes} in {file}")
    return said


def load_tokenizer(path: str, key: str = "tokenizer.path", *, role: Role | None = "encoder") -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or the Hub; ``ConfigError`` when it is not there or lacks a special token that
    a model of this ``role`` needs; ``None`` asks for none.

    ``key`` is the configuration's that names the path.
    """
    _check_there(path, f"{key}: ")
    given = f"{key}: given {path!r}: no tokenizer could be loaded"
    remedy = "give a directory that save_pretrained wrote, or a name on the Hub (offline: a downloaded one)"
    with warnings_of_transformers(), reading(given, remedy):
        if not has_tokenizer(path):
            reason = "no tokenizer.json or vocabulary in this folder" if Path(path).is_dir() else _not_found()
            raise ConfigError(f"{given} ({reason}); {remedy}")
        check_tokenizer_files(path)
        tokenizer = AutoTokenizer.from_pretrained(path, **safely(path))
    needed, wanted = _SPECIAL_TOKENS[role] if role else ((), "")
    missing = [name for name in needed if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ConfigError(f"{key}: given {path!r}: it has no {', '.join(missing)} token; give {wanted}")
    if not tokenizer.is_fast:
        raise ConfigError(f"{key}: given {path!r}: it has no tokenizer.json; convert it to a fast tokenizer")
    with reading(f"{key}: given {path!r}: its tokenizer cannot read a text", remedy):
        ids: Any = tokenizer("a text", "with a sign that few have: \U00012000")["input_ids"]  # of cuneiform
        tokenizer.convert_ids_to_tokens(ids)
        numbers = tokenizer.get_vocab().values()
        if len({*numbers}) < len(numbers) or max(numbers) > 2 * len(numbers):
            raise ConfigError(
                f"{key}: given {path!r}: {len(numbers):,} pieces have {len({*numbers}):,} ids up to {max(numbers):,}; "
                "give a tokenizer that numbers its pieces from 0, each differently"
            )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that a table of embeddings needs: the highest id and one.

    More than there are pieces where a vocabulary file holds a line twice: the last one's number counts, as in BERT's
    code, and nothing has the number of the other.
    """
    return 1 + max(tokenizer.get_vocab().values())


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, start: str, key: str, *, size: str = "vocab_size"
) -> None:
    """Raise ``ConfigError`` unless the tokenizer in ``start``, given as ``key``, is one for the model there, whose
    configuration calls the number of its pieces ``size``."""
    known = getattr(config, size)
    if vocabulary_size(tokenizer) > known:
        raise ConfigError(
            f"{key}: the tokenizer in {start} has {vocabulary_size(tokenizer):,} pieces, its weights know "
            f"{known:,}; give a folder whose tokenizer and weights belong together"
        )
