"""What language-model heads say of a text: guesses for masked tokens, replaced tokens, what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bertillery.models.encoders import encode, mlm_logits, replaced_logits
from pages.attention import MOST
from pages.blocks import Block, Mark, Marks, Paragraph, Table
from pages.tokens import Read, repeated, shown

_BEST = 5


def fill_mask(model: Any, tokenizer: Any, text: Read) -> Iterator[Block]:
    """Guesses for the masks of a text; without any, for each token in turn, masked alone."""
    mask = tokenizer.mask_token_id
    places = [place for place, token in enumerate(text.ids) if token == mask]
    if places:
        logits = mlm_logits(model, text.stream, torch.tensor(places)).float()
        rows = [
            [f"{place}. {text.tokens[place]}", *_guesses(each, tokenizer)]
            for place, each in zip(places, logits, strict=True)
        ]
        yield Table("Guesses for the masks, with their probabilities", [["token", *_numbered()], *rows])
        return
    places = [place for place, special in enumerate(text.special) if not special][:MOST]
    stream = repeated(text.ids, text.types, len(places))
    rows_of = torch.arange(len(places)) * len(text.ids) + torch.tensor(places)
    true = stream.ids[rows_of].clone()
    stream.ids[rows_of] = mask
    found = mlm_logits(model, stream, rows_of).float().softmax(-1)
    own = found.gather(1, true[:, None])[:, 0]
    yield Marks(
        "Each token masked in turn: its colour is the probability that the model gives it",
        [
            Mark(text.tokens[place], float(share), f"{share:.1%} for {text.tokens[place]} where it is masked")
            for place, share in zip(places, own, strict=True)
        ],
    )
    rows = [
        [f"{place}. {text.tokens[place]}", f"{share:.1%}", *_guesses(each.log(), tokenizer)]
        for place, share, each in zip(places, own, found, strict=True)
    ]
    head = ["token", "its probability", *_numbered()]
    yield Table("Guesses in the place of each token, masked alone", [head, *rows], note="To mask some tokens, write "
                f"{tokenizer.mask_token} for them in the text.")  # fmt: skip


def replaced(model: Any, text: Read) -> Iterator[Block]:
    """How much each token looks replaced to ELECTRA's discriminator."""
    shares = torch.sigmoid(replaced_logits(model, text.stream)).tolist()
    found = [
        Mark(token, share, f"{share:.1%} replaced", f"{share:.0%}")
        for token, share, special in zip(text.tokens, shares, text.special, strict=True)
        if not special
    ]
    yield Marks("Replaced or original? The colour is the probability that a token was replaced", found)


def next_tokens(model: Any, tokenizer: Any, text: Read) -> Iterator[Block]:
    """The distribution of what follows the text, and of each token behind those before it."""
    hidden = encode(model, text.stream)
    found = model.get_output_embeddings()(hidden).float().softmax(-1)
    own = found[:-1].gather(1, text.stream.ids[1:, None])[:, 0].tolist()
    best = found[-1].topk(min(2 * _BEST, found.shape[1]))
    rows = [
        [shown(tokenizer, int(token)), f"{share:.1%}"] for share, token in zip(*map(Tensor.tolist, best), strict=True)
    ]
    yield Table(
        "What follows the text", [["token", "probability"], *rows], note=f"Entropy {_entropy(found[-1]):.2f} nats."
    )
    if len(text.ids) < 2:
        return
    yield Marks(
        "Each token behind those before it: its colour is the probability that the model gives it",
        [Mark(token, share, f"{share:.1%} for {token}") for token, share in zip(text.tokens[1:], own, strict=True)],
    )
    rows = [
        [
            f"{place}. {text.tokens[place]}",
            f"{own[place - 1]:.1%}",
            f"{_entropy(found[place - 1]):.2f}",
            *_guesses(found[place - 1].log(), tokenizer),
        ]
        for place in range(1, min(len(text.ids), MOST + 1))
    ]
    yield Table("Next-token distributions", [["token", "its probability", "entropy, nats", *_numbered()], *rows])


def _entropy(shares: Tensor) -> float:
    return float(torch.distributions.Categorical(shares).entropy())


def _guesses(logits: Tensor, tokenizer: Any) -> list[str]:
    best = logits.softmax(-1).topk(min(_BEST, len(logits)))
    cells = [
        f"{shown(tokenizer, int(token))} {share:.0%}" for share, token in zip(*map(Tensor.tolist, best), strict=True)
    ]
    return cells + [""] * (_BEST - len(cells))


def _numbered() -> Sequence[str]:
    return [f"guess {number}" for number in range(1, _BEST + 1)]


def without_head() -> Paragraph:
    """Where a model has no head."""
    return Paragraph(
        "This model has no head: it turns a text into hidden states, and what can be seen is its attention."
    )
