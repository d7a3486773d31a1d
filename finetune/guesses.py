"""What choices, words and questions are solved to without an encoder: by nothing at all, and by counting words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from finetune.answers import Prediction
from finetune.data import Split
from finetune.structured import objects

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


def choice_baselines(train: Split, held_out: Split) -> dict[str, np.ndarray]:
    """``majority``, the most frequent place of the right choice, and ``bag of words``: the choice (N,) that a logistic
    regression on its words, and on how many of the text's it has, prefers."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    assert train.labels is not None
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([*train.texts[0], *(choice for choices in train.texts[1] for choice in choices)])

    def features(split: Split) -> tuple[Any, np.ndarray]:
        sizes = np.array([len(choices) for choices in split.texts[1]])
        choices = vectorizer.transform([choice for choices in split.texts[1] for choice in choices])
        texts = vectorizer.transform(split.texts[0])[np.repeat(np.arange(len(sizes)), sizes)]
        alike = np.asarray(texts.multiply(choices).sum(1))
        return sparse.hstack([choices, sparse.csr_matrix(alike)], format="csr"), sizes

    known, sizes = features(train)
    right = np.zeros(known.shape[0], np.int64)
    right[np.cumsum(sizes) - sizes + train.labels] = 1
    unknown, sizes = features(held_out)
    preferred = LogisticRegression(max_iter=1000).fit(known, right).decision_function(unknown)
    empty = [not choice for choices in held_out.texts[1] for choice in choices]
    parts = np.split(np.where(empty, -np.inf, preferred), np.cumsum(sizes)[:-1])
    majority = np.full(held_out.num_examples, np.bincount(train.labels).argmax())
    return {"majority": majority, "bag of words": np.array([part.argmax() for part in parts])}


def token_baselines(train: Split, held_out: Split, outside: int) -> dict[str, np.ndarray]:
    """``majority``, the tag ``outside`` everywhere, and ``bag of words``: each word's most frequent tag in training."""
    assert train.labels is not None
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for words, tags in zip(train.texts[0], train.labels, strict=True):
        for word, tag in zip(words, tags.tolist(), strict=True):
            seen[word][tag] += 1
    tag_of = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return {
        "majority": objects([np.full(len(words), outside) for words in held_out.texts[0]]),
        "bag of words": objects([np.array([tag_of.get(w, outside) for w in words]) for words in held_out.texts[0]]),
    }


def span_baselines(held_out: Split) -> dict[str, np.ndarray]:
    """``majority``, no answer, and ``bag of words``: the sentence of the context that is most like the question."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    numbers = {context: i for i, context in enumerate(dict.fromkeys(held_out.texts[1]))}
    parts = [_SENTENCE.split(context) for context in numbers]
    sentences = [sentence for part in parts for sentence in part]
    ends = np.cumsum([len(part) for part in parts])
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    rows: Any = vectorizer.fit_transform(sentences)
    asked: Any = vectorizer.transform(held_out.texts[0])
    found = []
    for question, context in enumerate(held_out.texts[1]):
        begin, end = ends[numbers[context]] - len(parts[numbers[context]]), ends[numbers[context]]
        alike = (rows[begin:end] @ asked[question].T).toarray()[:, 0]
        found.append(Prediction(sentences[begin + int(alike.argmax())].strip(), -float(alike.max())))
    return {"majority": objects([Prediction("", 0.0)] * len(found)), "bag of words": objects(found)}
