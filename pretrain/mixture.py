"""A mixture of corpora by weight: which documents an epoch visits, in which order (Brown et al. 2020, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertillery.engine.rng import Permutation
from pretrain.pairs import Tokens


class Mixture:
    """Documents of K corpora that lie one behind the other, drawn so that a corpus has its share of the tokens.

    An epoch has about as many tokens as all corpora together. A corpus is read through again and again, in another
    order each time; an epoch goes on in it where the epoch before stopped. What an epoch takes of all of them is
    shuffled. So which document stands at a place is a function of (seed, epoch, place), and no document of a corpus is
    read twice before every other one of it was read once.
    """

    def __init__(self, tokens: Tokens, documents: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        """``documents`` (K,) are the documents of each corpus, and ``weights`` (K,) its weight, of any sum."""
        self._seed, self._sizes = seed, np.asarray(documents)
        self._first = np.cumsum(self._sizes) - self._sizes
        starts = np.asarray(tokens.sentences)[np.asarray(tokens.documents)]
        text = np.diff(starts[np.append(self._first, self._sizes.sum())])
        self.shares = np.asarray(weights) / np.sum(weights)
        """(K,) of the tokens."""
        passes = self.shares * text.sum() / text
        self._taken = np.maximum(1, np.round(passes * self._sizes)).astype(np.int64)
        self._ends = np.cumsum(self._taken)
        self.num_documents = int(self._ends[-1])
        """Documents that an epoch visits."""

    @property
    def passes(self) -> np.ndarray:
        """How often an epoch reads through each corpus (K,)."""
        return self._taken / self._sizes

    def documents(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The documents at some places (N,) of an epoch."""
        shuffled = Permutation(self.num_documents, self._seed, epoch)(places)
        corpus = np.searchsorted(self._ends, shuffled, side="right")
        ahead = epoch * self._taken[corpus] + shuffled - (self._ends - self._taken)[corpus]
        time, place = np.divmod(ahead, self._sizes[corpus])
        found = np.empty(len(places), np.int64)
        for which, number in np.unique(np.stack([corpus, time]), axis=1).T.tolist():
            at = (corpus == which) & (time == number)
            order = Permutation(int(self._sizes[which]), self._seed, number, which)
            found[at] = self._first[which] + order(place[at])
        return found

    def describe(self, names: Sequence[str], epochs: float) -> list[str]:
        """A line for each corpus: its share of the tokens, and how often as many ``epochs`` read through it."""
        rows = zip(names, self.shares, epochs * self.passes, strict=True)
        return [f"{name}: {share:.1%} of the tokens, read {passes:.2f} times" for name, share, passes in rows]
