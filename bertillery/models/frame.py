"""The frame of a sequence: the special tokens around its texts, their token types, and where a long text is cut.

Training lays sequences out by it, and an export's tokenizer is written so that stock code does the same. Special tokens
come from the frame alone: spelt out in a text they are text.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError
from bertillery.models.encoders import longest_sequence, reads_token_types

START, DELIMITER, EXTRACT = "<|start|>", "<|delimiter|>", "<|extract|>"
"""Tokens of GPT-1's task transforms; the head reads the state at the last one."""
_OF_THIS_MACHINE = ("cache_dir", "is_local", "local_files_only", "name_or_path", "tokenizer_file", "vocab_file")
"""What a loaded tokenizer remembers of how it was loaded."""


@dataclass(frozen=True)
class Template:
    """The special tokens around one text or two, as the tokenizer sets them; ids and token types of each place."""

    parts: tuple[np.ndarray, ...]
    """Before the first text, (between the texts,) after the last: ids."""
    types: tuple[np.ndarray, ...]
    """Their token types."""
    text_types: tuple[int, ...]
    """Token type of each text."""

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.parts))

    def room(self, max_length: int) -> int:
        """Tokens of text in a sequence of ``max_length``; ``InputError`` where there is none for each text."""
        texts = len(self.text_types)
        if max_length - self.size < texts:
            raise InputError(
                f"train.phases: a sequence_length of {max_length} leaves no room beside {self.size} special "
                f"tokens; give at least {self.size + texts}"
            )
        return max_length - self.size


def template(tokenizer: PreTrainedTokenizerBase, num_texts: int) -> Template:
    """Read off what the tokenizer puts around texts, whatever its family.

    Raises ``ConfigError`` unless that is its cls token before them and its sep token, once or more, behind each, or
    behind the last one the extract token of :func:`with_transform_tokens`: heads read the first token or the extract
    token, and nothing else tells two texts apart.
    """
    texts: list[Any] = ["a"] * num_texts
    encoded = tokenizer(*texts, return_token_type_ids=True)
    ids, types = np.array(encoded["input_ids"]), np.array(encoded["token_type_ids"])
    owner = np.array([num_texts * 2 if o is None else o for o in encoded.sequence_ids(0)])
    cuts = [0]
    for text in range(num_texts):
        (places,) = np.nonzero(owner == text)
        if not len(places):
            raise ConfigError(
                'the tokenizer makes no token of the text "a"; give one that has a token for unknown text'
            )
        cuts += [int(places[0]), int(places[-1]) + 1]
    cuts.append(len(ids))
    around = [slice(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    inside = [int(types[np.nonzero(owner == text)[0][0]]) for text in range(num_texts)]
    opening, *closings = (ids[a].tolist() for a in around)
    cls, sep = cast(int, tokenizer.cls_token_id), cast(int, tokenizer.sep_token_id)
    extract = tokenizer.get_vocab().get(EXTRACT)
    framed = all({*part} == {sep} for part in closings) if extract is None else closings[-1] == [extract]
    if opening != [cls] or not framed or any({*part} != {sep} for part in closings[:-1]):
        raise _no_frame(tokenizer, encoded, f"{tokenizer.cls_token} before them and {tokenizer.sep_token} behind each")
    return Template(tuple(ids[a] for a in around), tuple(types[a] for a in around), tuple(inside))


def with_transform_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A causal model's tokenizer that frames texts as GPT-1's task transforms do (Radford et al. 2018, section 3.3):
    ``start A extract`` and ``start A delimiter B extract``, with three tokens of its own. One that has them already is
    returned as it is."""
    if EXTRACT in tokenizer.get_vocab():
        return tokenizer
    made: Any = copy.deepcopy(tokenizer)
    made.add_special_tokens({"cls_token": START, "sep_token": DELIMITER})
    made.add_tokens([AddedToken(EXTRACT, special=True, normalized=False)], special_tokens=True)
    tokens = [(token, made.convert_tokens_to_ids(token)) for token in (START, DELIMITER, EXTRACT)]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {EXTRACT}", pair=f"{START} $A {DELIMITER} $B {EXTRACT}", special_tokens=tokens
    )
    return made


def check_pretraining_frame(tokenizer: PreTrainedTokenizerBase, num_texts: int) -> None:
    """Raise ``ConfigError`` unless the tokenizer frames one text or two as pretraining does: ``[CLS] A [SEP]``, or
    ``[CLS] A [SEP] B [SEP]`` with token type 1 for B and the [SEP] behind it."""
    found = template(tokenizer, num_texts)
    types = [part.tolist() for part in found.types], found.text_types
    if found.size != num_texts + 1 or types != ([[0], [0], [1]][: num_texts + 1], (0, 1)[:num_texts]):
        texts: list[Any] = ["a"] * num_texts
        encoded = tokenizer(*texts, return_token_type_ids=True)
        wanted = "cls A sep" if num_texts == 1 else "cls A sep B sep with token type 1 for B and the sep behind it"
        raise _no_frame(tokenizer, encoded, wanted)


def _no_frame(tokenizer: PreTrainedTokenizerBase, encoded: Any, wanted: str) -> ConfigError:
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    shown = " ".join(f"{token}:{kind}" for token, kind in zip(tokens, encoded["token_type_ids"], strict=True))
    return ConfigError(
        f"the tokenizer in {tokenizer.name_or_path or 'memory'} reads texts as {shown} (token:type), and what is "
        f"trained here as {wanted}: stock code would read the export otherwise than training did. Set the "
        "post_processor of its tokenizer.json (TemplateProcessing), or take another tokenizer"
    )


def exported_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    max_length: int | None = None,
    texts_only: bool,
    spaced: bool = False,
) -> PreTrainedTokenizerBase:
    """A copy that makes of texts, by default, the inputs that a model of this ``config`` was trained on.

    It gives token types where the model reads them and nowhere else, cuts and pads at the end, and cuts, when asked to
    truncate, to ``max_length`` tokens (where not given, to what the model can read). With ``texts_only`` special tokens
    that are spelt out are text; without, they are tokens, as a [MASK] to be filled is. With ``spaced`` it reads the
    first word of a text, and each of a list of words, as with a space before it, which matters to byte-level
    vocabularies. What it remembers of this machine is left out.
    """
    made: Any = copy.copy(tokenizer)
    settings = {
        "model_max_length": min(max_length or longest_sequence(config), longest_sequence(config)),
        "model_input_names": ["input_ids", *["token_type_ids"] * reads_token_types(config), "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": texts_only and not made.extra_special_tokens,
    }
    for name, value in settings.items():
        setattr(made, name, value)
    kept = {name: value for name, value in made.init_kwargs.items() if name not in _OF_THIS_MACHINE}
    made.init_kwargs = kept | settings
    return _spaced(made) if spaced else made


def _spaced(tokenizer: Any) -> PreTrainedTokenizerBase:
    """The tokenizer with a space before what it reads, where that is a choice."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = [parts["pre_tokenizer"] or {}, *(parts["pre_tokenizer"] or {}).get("pretokenizers", [])]
    choices = [step for step in steps if "add_prefix_space" in step]
    if choices:
        for step in choices:
            step["add_prefix_space"] = True
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True
    return tokenizer


def text_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer as a reader of text alone: it adds no frame, cuts nothing, and finds none of the special tokens
    that have a part in the frame or in masking. Ids are the tokenizer's."""
    return _text_backend(tokenizer, len(cast(Any, tokenizer)))


@lru_cache(maxsize=4)
def _text_backend(tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenizer:
    """By the tokenizer and its size, since tokens may be added to it."""
    parts = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    named = {str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)} | {EXTRACT}
    # Found in a text they would be cut out of it before anything else, and a Unigram model has them as pieces besides.
    # Under a name that no text holds they keep their ids.
    hidden = {token: f"\0\0{token}\0\0" for token in named}
    for token in parts["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "normalized": False}
    model = parts["model"]
    if model.get("unk_token"):
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:  # text that says <s> may have been merged to the token of that name
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if not named & {a, b, a + b}]
    parts["truncation"] = parts["padding"] = None
    return Tokenizer.from_str(json.dumps(parts))
