"""The recurrent encoder-decoder: its arithmetic written out, its equivalences, and alignments that it learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from bertillery.config.section import ConfigError, InputError
from bertillery.engine.batch import Stream, pack_stream
from bertillery.engine.layout import cross_layout
from bertillery.models.encoders import family
from bertillery.models.export import export_model
from bertillery.models.families.rnn_seq2seq import (
    RnnSeq2SeqConfig,
    RnnSeq2SeqForConditionalGeneration,
    reversed_rows,
)
from tests.corpora import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def decoder_states(model: Any, source: Stream, target: Stream, *more: Any) -> Tensor:
    crossing = cross_layout(target.offsets.diff().numpy(), source.offsets.diff().numpy())
    return model.decoder_states(source, target, crossing, *more)


def alignments(model: Any, source: Stream, target: Stream) -> list[np.ndarray]:
    """Of the one layer and head."""
    return [weights[0, 0] for weights in model.alignments(source, target)]


TWO_VOCABULARIES = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60}
SOURCES, TARGETS = [5, 9, 1, 12, 20, 3], [4, 11, 7, 1, 2, 15]
SCORES = ["none", "dot", "general", "concat", "additive"]
VARIANTS: list[dict[str, Any]] = [
    *({"attention": score} for score in SCORES),
    *({"attention": score, "input_feeding": True} for score in SCORES[1:]),
    {"cell": "lstm", "num_hidden_layers": 2, "reverse_source": True},
    {"cell": "rnn", "bidirectional": False, "attention": "additive", "reverse_source": True},
    {"cell": "lstm", "num_hidden_layers": 3, "attention": "none", "bidirectional": False},
    {"cell": "rnn", "num_hidden_layers": 2, "attention": "concat", "input_feeding": True, "reverse_source": True},
    TWO_VOCABULARIES,
]


def tiny(**settings: Any) -> RnnSeq2SeqForConditionalGeneration:
    """Weights large enough for each input to matter; in evaluation mode."""
    sizes = {"vocab_size": 50, "embedding_size": 12, "hidden_size": 16, "encoder_hidden_size": 8}
    torch.manual_seed(0)
    config = RnnSeq2SeqConfig(**{**sizes, "initializer_range": 0.4, **settings})
    return RnnSeq2SeqForConditionalGeneration(config).eval()


def streams() -> tuple[Stream, Stream]:
    rng = np.random.default_rng(0)
    sources = [np.append(rng.integers(3, 50, length - 1), 2) for length in SOURCES]
    targets = [np.append([1], rng.integers(3, 50, length - 1)) for length in TARGETS]
    return stream(sources), stream(targets)


def stream(sequences: list[Any]) -> Stream:
    return pack_stream(np.concatenate(sequences), np.array([len(each) for each in sequences]))


def parts(flat: Tensor, of: Stream) -> list[Tensor]:
    return list(flat.split(of.offsets.diff().tolist()))


def padded(of: Stream, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, S)."""
    lengths = of.offsets.diff()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.full(mask.shape, filler).masked_scatter(mask, of.ids), mask


def stock(model: Any, source: Stream, target: Stream, filler: int = 0) -> tuple[Any, Tensor]:
    ids, mask = padded(source, filler)
    inputs, real = padded(target)
    return model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs), real


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


# Sizes and configuration


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"cell": "rnn"}, 3_885_568),
        ({"cell": "gru"}, 5_200_384),
        ({"cell": "lstm"}, 6_120_448),
        ({"cell": "rnn", "input_feeding": True}, 4_147_712),
        ({"cell": "gru", "input_feeding": True}, 5_986_816),
        ({"cell": "lstm", "input_feeding": True}, 7_169_024),
        ({"attention": "dot"}, 5_200_384 - 262_144),
        ({"attention": "concat"}, 5_200_384 + 262_656),
        ({"attention": "additive"}, 5_200_384 + 262_656),
        ({"attention": "none"}, 5_200_384 - 786_432),
    ],
)
def test_parameters_are_counted_to_the_unit(settings: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        model = RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**settings))
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "dot", "hidden_size": 300}, r"given 2 x 256 = 512 for the encoder .* 300 for the decoder"),
        ({"attention": "dot", "bidirectional": False}, r"given 256 for the encoder .* 512 for the decoder"),
        ({"attention": "none", "input_feeding": True}, "input_feeding: there is no attentional vector"),
        ({"cell": "qrnn"}, "cell: given 'qrnn', one of rnn, lstm, gru is allowed"),
        ({"attention": "local"}, "attention: given 'local', one of none, dot, general, concat, additive is allowed"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RnnSeq2SeqConfig(**settings)


def test_all_parameters_are_drawn_uniformly() -> None:
    model = tiny(initializer_range=0.08, cell="lstm", attention="concat", vocab_size=500)
    values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert 0.0799 < values.abs().max().item() <= 0.08
    assert values.std().item() == pytest.approx(0.08 / 3**0.5, rel=0.02)
    source, target = streams()
    loss = F.cross_entropy(model.vocabulary_logits(decoder_states(model, source, target)), target.ids)
    assert loss.item() == pytest.approx(np.log(500), abs=0.02)


def test_the_family_reads_no_token_types() -> None:
    assert not family(RnnSeq2SeqConfig()).token_types


# The arithmetic


def reference(model: Any, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """States (T, E) and attention weights (T, S) of one pair of sentences, token by token as the papers have them."""
    config, encoder = model.config, model.encoder
    embed, embed_target = encoder.embeddings.weight, model.lm_head.weight
    if config.reverse_source:
        source = torch.cat([source[:-1].flip(0), source[-1:]])
    memory, last = encoder.recurrence.cells(embed[source][:, None])
    memory = memory[:, 0]
    last = last if isinstance(last, tuple) else (last,)
    ways = 1 + config.bidirectional
    state = []
    for bridge, each in zip(encoder.bridges, last, strict=True):
        layers = [each[layer * ways : (layer + 1) * ways].flatten() for layer in range(config.num_hidden_layers)]
        state.append(torch.stack([torch.tanh(bridge.weight @ x + bridge.bias) for x in layers])[:, None])
    vector, found, weights = torch.zeros(config.hidden_size), [], []
    for token in target:
        before = state[0][-1, 0]
        inputs = torch.cat([embed_target[token], vector]) if config.input_feeding else embed_target[token]
        _, after = model.recurrence.cells(inputs[None, None], tuple(state) if len(state) > 1 else state[0])
        state = list(after) if isinstance(after, tuple) else [after]
        vector = hidden = state[0][-1, 0]
        if config.attention != "none":
            query = before if config.attention == "additive" else hidden
            alpha = torch.stack([score(model, query, each) for each in memory]).softmax(0)
            vector = torch.tanh(model.combine.weight @ torch.cat([alpha @ memory, hidden]))
            weights.append(torch.cat([alpha[:-1].flip(0), alpha[-1:]]) if config.reverse_source else alpha)
        found.append(model.projection.weight @ vector)
    return torch.stack(found), torch.stack(weights) if weights else None


def score(model: Any, h: Tensor, s: Tensor) -> Tensor:
    attention, kind = getattr(model, "attention", None), model.config.attention
    if attention is None or kind == "dot":
        return h @ s
    if kind == "general":
        return h @ attention.key.weight @ s
    both = torch.cat([attention.query.weight, attention.key.weight], 1)
    return attention.value.weight[0] @ torch.tanh(both @ torch.cat([h, s]))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@torch.no_grad()
def test_packed_padded_and_stepwise_forms_equal_the_papers_arithmetic(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    source, target = streams()
    pairs = list(zip(parts(source.ids, source), parts(target.ids, target), strict=True))
    expected = [reference(model, *pair) for pair in pairs]
    states = torch.cat([each for each, _ in expected])
    close(decoder_states(model, source, target), states)
    logits = model.vocabulary_logits(states)
    close(logits, states @ model.lm_head.weight.T)
    output, real = stock(model, source, target)
    close(output.logits[real], logits)
    search = model.begin(source)
    inputs, _ = padded(target)
    for step in range(inputs.shape[1]):
        log_probs, search = model.step(search, inputs[:, step : step + 1])
        close(log_probs[:, 0][real[:, step]], output.logits[:, step].log_softmax(-1)[real[:, step]])
    if model.config.attention == "none":
        assert output.cross_attentions is None
        return
    (weights,) = output.cross_attentions
    _, mask = padded(source)
    close(weights.sum(-1), torch.ones(weights.shape[:3]))
    assert (weights.masked_select(~mask[:, None, None]) == 0).all()
    for i, (found, (_, alpha)) in enumerate(zip(alignments(model, source, target), expected, strict=True)):
        assert alpha is not None
        close(torch.from_numpy(found), alpha)
        close(weights[i, 0, : len(alpha), : alpha.shape[1]], alpha)


@torch.no_grad()
def test_dot_is_general_with_the_identity() -> None:
    source, target = streams()
    general, dot = tiny(attention="general"), tiny(attention="dot")
    dot.load_state_dict(general.state_dict(), strict=False)
    general.attention.key.weight.copy_(torch.eye(16))
    close(decoder_states(dot, source, target), decoder_states(general, source, target))


@torch.no_grad()
def test_padding_of_a_source_is_inert() -> None:
    source, target = streams()
    for settings in ({"cell": "lstm", "num_hidden_layers": 2}, {"attention": "additive", "input_feeding": True}):
        model = tiny(**settings)
        ids, mask = padded(source)
        encoded = model.encoder(ids, mask.long())
        for i, each in enumerate(parts(source.ids, source)):
            alone = model.encoder(each[None])
            close(encoded.start[i], alone.start[0])
            close(encoded.last_hidden_state[i, : len(each)], alone.last_hidden_state[0])
        assert torch.equal(stock(model, source, target)[0].logits, stock(model, source, target, filler=7)[0].logits)


@torch.no_grad()
def test_a_token_of_the_target_changes_nothing_before_it() -> None:
    source, _ = streams()
    ids, mask = padded(source)
    inputs = torch.full((6, 8), 5)
    for settings in ({}, {"attention": "additive"}, {"input_feeding": True}):
        model = tiny(**settings)
        before = model(ids, mask, inputs).logits
        after = model(ids, mask, torch.cat([inputs[:, :4], inputs[:, 4:] + 1], 1)).logits
        assert torch.equal(before[:, :4], after[:, :4])
        assert not torch.isclose(before[:, 4:], after[:, 4:]).all(-1).any()


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(InputError, match="source 1 of the batch has no token"):
        tiny()(torch.ones(2, 3).long(), torch.tensor([[1, 1, 1], [0, 0, 0]]), torch.ones(2, 1).long())


# Reversed sources


def test_reversing_twice_is_the_identity_and_the_end_stays_last() -> None:
    sequences = [[5, 6, 7, 2], [5], [2], [5, 6, 7], [2, 5, 2, 2]]
    of = stream(sequences)
    rows = reversed_rows(of.ids, of.offsets, 2)
    assert [each.tolist() for each in parts(of.ids[rows], of)] == [[7, 6, 5, 2], [5], [2], [7, 6, 5], [2, 5, 2, 2]]
    assert torch.equal(rows[rows], torch.arange(of.num_tokens))
    assert parts(of.ids[reversed_rows(of.ids, of.offsets, None)], of)[0].tolist() == [2, 7, 6, 5]


@torch.no_grad()
def test_a_model_of_reversed_sources_is_the_plain_one_on_reversed_text() -> None:
    source, target = streams()
    plain, reverse = tiny(), tiny(reverse_source=True)
    text = [torch.cat([each[:-1].flip(0), each[-1:]]).numpy() for each in parts(source.ids, source)]
    close(decoder_states(reverse, source, target), decoder_states(plain, stream(text), target))
    assert (decoder_states(reverse, source, target) - decoder_states(plain, source, target)).abs().max() > 0.01
    for ours, theirs in zip(alignments(reverse, source, target), alignments(plain, stream(text), target), strict=True):
        close(torch.from_numpy(ours[:, :-1].copy()), torch.from_numpy(theirs[:, -2::-1].copy()))


# Scheduled sampling


@pytest.mark.parametrize("settings", [{}, {"cell": "lstm", "attention": "additive", "input_feeding": True}], ids=str)
@torch.no_grad()
def test_where_it_is_not_forced_the_decoder_reads_its_own_token(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    source, target = streams()
    close(
        decoder_states(model, source, target, torch.ones(target.num_tokens, dtype=torch.bool)),
        decoder_states(model, source, target),
    )
    forced = torch.from_numpy(np.random.default_rng(1).random(target.num_tokens) < 0.5)
    found = decoder_states(model, source, target, forced)
    own = model.vocabulary_logits(found).argmax(-1).roll(1)
    read = torch.where(forced | (target.positions == 0), target.ids, own)  # a first token is always read
    assert (read != target.ids).sum() > 10
    close(found, decoder_states(model, source, pack_stream(read.numpy(), np.array(TARGETS))))


def test_no_gradient_flows_through_a_token_of_the_decoders_own() -> None:
    model = tiny(tie_word_embeddings=False)
    source, target = streams()
    states = decoder_states(model, source, target, target.ids < 0)
    states[target.positions == 1].sum().backward()
    assert model.lm_head.weight.grad is None
    assert model.projection.weight.grad is not None


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_parameter_is_trained_also_in_mixed_precision(settings: dict[str, Any]) -> None:
    model = tiny(**settings, dropout=0.2).train()
    source, target = streams()
    for forced in (None, target.ids % 2 > 0):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.vocabulary_logits(decoder_states(model, source, target, forced))
        F.cross_entropy(logits.float(), target.ids).backward()
        silent = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
        assert silent == []


# Search and generation


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@torch.no_grad()
def test_search_continues_the_hypotheses_that_are_selected(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    source, _ = streams()
    ids, mask = padded(source)
    state, generator = model.begin(source), torch.Generator().manual_seed(0)
    owners, prefixes = torch.arange(len(SOURCES)), torch.empty(len(SOURCES), 1, 0, dtype=torch.long)
    for kept, k in ([3, 4], [5, 3], [2, 1]):  # sentences that are left, and hypotheses of each
        tokens = torch.randint(3, 50, prefixes.shape[:2], generator=generator)
        log_probs, state = model.step(state, tokens)
        assert log_probs.dtype == torch.float32
        prefixes = torch.cat([prefixes, tokens[..., None]], -1)
        n, hypotheses, _ = prefixes.shape
        of = owners.repeat_interleave(hypotheses)
        logits = model(ids[of], mask[of].long(), prefixes.flatten(0, 1)).logits[:, -1]
        close(log_probs.flatten(0, 1), logits.log_softmax(-1))
        sentences = torch.randperm(n, generator=generator)[:kept].sort().values
        beams = torch.randint(hypotheses, (len(sentences), k), generator=generator)
        state = model.select(state, sentences, beams)
        owners, prefixes = owners[sentences], prefixes[sentences[:, None], beams]
        assert state.memory is None or len(state.memory.states) == len(sentences)


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_generation_of_the_library_is_a_loop_of_argmax(use_cache: bool) -> None:
    model = tiny(attention="additive", input_feeding=True, cell="lstm")
    source, _ = streams()
    ids, mask = padded(source)
    settings = {"max_new_tokens": 9, "use_cache": use_cache, "return_dict_in_generate": True, "output_attentions": True}
    found = model.generate(ids, attention_mask=mask.long(), **settings)
    state, tokens, own, ended = model.begin(source), torch.ones(6, 1).long(), [], torch.zeros(6, 1, dtype=torch.bool)
    for _ in range(9):
        own.append(tokens)
        log_probs, state = model.step(state, tokens)
        tokens = log_probs.argmax(-1).masked_fill(ended, 0)
        ended |= tokens == 2
    own = torch.cat([*own, tokens], 1)
    assert torch.equal(found.sequences, own[:, : found.sequences.shape[1]])
    assert [each[0].shape for each in found.cross_attentions] == [(6, 1, step + 1, 20) for step in range(9)]
    assert (found.cross_attentions[-1][0].masked_select(~mask[:, None, None]) == 0).all()


@torch.no_grad()
def test_scores_of_the_librarys_beam_search_are_those_of_its_sequences() -> None:
    model = tiny(eos_token_id=None)
    source, _ = streams()
    ids, mask = padded(source)
    settings = {"num_beams": 4, "max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(ids, attention_mask=mask.long(), **settings)
    logits = model(ids, mask.long(), found.sequences[:, :-1]).logits.log_softmax(-1)
    close(found.sequences_scores, logits.gather(2, found.sequences[:, 1:, None])[..., 0].mean(1))


@torch.no_grad()
def test_labels_are_shifted_and_padding_of_theirs_is_ignored() -> None:
    model = tiny()
    source, target = streams()
    ids, mask = padded(source)
    labels, real = padded(target)
    labels = labels.masked_fill(~real, -100)
    output = model(ids, mask.long(), labels=labels)
    inputs = torch.cat([torch.ones(6, 1).long(), labels[:, :-1].masked_fill(~real[:, :-1], 0)], 1)
    logits = model(ids, mask.long(), inputs).logits
    close(output.loss, F.cross_entropy(logits[real], labels[real]))


def test_an_export_opens_in_a_fresh_process_after_import_bertillery(tmp_path: Path) -> None:
    model = tiny(vocab_size=512, cell="lstm", num_hidden_layers=2)
    folder = export_model(model, tiny_tokenizer(), tmp_path / "export", card="# recurrent\n")
    opened, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert opened.lm_head.weight is opened.encoder.embeddings.weight
    source, target = streams()
    close(stock(opened.eval(), source, target)[0].logits, stock(model, source, target)[0].logits)
    opened.resize_token_embeddings(520)
    assert opened.lm_head.weight is opened.encoder.embeddings.weight
    assert stock(opened, source, target)[0].logits.shape[-1] == 520
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import bertillery, torch\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        "model, report = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(report.values()), report\n"
        "model.generate(torch.tensor([[5, 6, 2]]), max_new_tokens=3, num_beams=2)\n"
        "print(type(model).__name__, model.lm_head.weight is model.encoder.embeddings.weight)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "RnnSeq2SeqForConditionalGeneration True"
    assert "Warning" not in done.stderr
    assert "not initialized" not in done.stderr


# Truncated back-propagation through time


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_gradient_ends_where_back_propagation_through_time_is_truncated(cell: str) -> None:
    model = tiny(cell=cell, attention="none", num_hidden_layers=2)
    ids = torch.arange(3, 49).view(2, 23)  # no token twice, so that a row of the embeddings is a place in the text
    steps = 5
    whole = torch.cat(list(model.truncated_states(ids, 23)), 1)
    pieces = list(model.truncated_states(ids, steps))
    close(torch.cat(pieces, 1), whole)
    for number, piece in enumerate(pieces):
        model.zero_grad()
        piece[:, -1].sum().backward()
        reached = model.encoder.embeddings.weight.grad[ids].abs().sum(-1)
        end = number * steps + piece.shape[1]
        assert (reached[:, number * steps : end] > 0).all()
        assert (reached[:, : number * steps] == 0).all()
        assert end - steps <= number * steps  # so nothing more than that many steps back is reached
    model.zero_grad()
    whole[:, -1].sum().backward()
    assert (model.encoder.embeddings.weight.grad[ids].abs().sum(-1) > 0).all()
    with pytest.raises(ConfigError, match="no source to attend to; given attention general"):
        next(tiny().truncated_states(ids, 5))


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "none", "num_hidden_layers": 2},
        {"attention": "general", "cell": "lstm"},
        {"attention": "additive"},
        {"attention": "general", "input_feeding": True},
        {"attention": "additive", "input_feeding": True, "cell": "lstm", "num_hidden_layers": 2},
    ],
)
def test_a_decoder_goes_on_where_its_gradient_ends(settings: dict[str, Any]) -> None:
    """The states are the same, and the last one of each sentence depends on the tokens of its own piece alone."""
    model, (source, _), steps = tiny(**TWO_VOCABULARIES, **settings), streams(), 3
    lengths = [11, 4, 8, 5, 1, 10]
    target = stream(np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1]))  # no token twice
    cut = decoder_states(model, source, target, None, steps)
    close(cut, decoder_states(model, source, target))
    for states, ids in zip(parts(cut, target), parts(target.ids, target), strict=True):
        model.zero_grad()
        states[-1].sum().backward(retain_graph=True)
        reached = model.target_embeddings.weight.grad[ids].abs().sum(-1) > 0  # pyright: ignore[reportOptionalSubscript]
        assert reached.tolist() == [place >= (len(ids) - 1) // steps * steps for place in range(len(ids))]


def test_two_vocabularies_share_nothing() -> None:
    """Source and target have tables of their own; the target's is the output's, too."""
    model, joint = tiny(**TWO_VOCABULARIES), tiny()
    assert model.get_input_embeddings().weight.shape == (50, 12)
    assert model.lm_head.weight is model.target_embeddings.weight
    assert model.lm_head.weight.shape == (60, 12)
    assert model.num_parameters() - joint.num_parameters() == 60 * 12
    assert joint.lm_head.weight is joint.get_input_embeddings().weight


def test_the_language_model_of_the_documentation_learns() -> None:
    """An update every 5 tokens, on streams that repeat themselves every 7."""
    page = (Path(__file__).resolve().parents[2] / "docs/translation.md").read_text(encoding="utf-8")
    *_, code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    torch.manual_seed(0)
    known: dict[str, Any] = {}
    exec(code, known)
    ids = torch.randint(300, (4, 7)).repeat(1, 8)
    losses = [known["epoch"](ids, steps=5) for _ in range(12)]
    assert losses[0] > 4.5
    assert losses[-1] < 1


def test_a_model_without_attention_has_no_alignment() -> None:
    with pytest.raises(ConfigError, match="attention none"):
        tiny(attention="none").alignments(*streams())


# Attention learns to align


@pytest.mark.parametrize("backwards", [False, True], ids=["copy", "reverse"])
def test_a_copy_is_aligned_along_the_diagonal_and_a_reversal_against_it(backwards: bool) -> None:
    rng = np.random.default_rng(0)

    def examples(number: int) -> tuple[Stream, Stream, Tensor]:
        texts = [rng.integers(3, 12, rng.integers(5, 8)) for _ in range(number)]
        answers = [text[::-1] if backwards else text for text in texts]
        labels = torch.from_numpy(np.concatenate([np.append(each, 2) for each in answers]))
        return (
            stream([np.append(each, 2) for each in texts]),
            stream([np.insert(each, 0, 1) for each in answers]),
            labels,
        )

    model = tiny(vocab_size=12, embedding_size=32, hidden_size=64, encoder_hidden_size=32, initializer_range=0.3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        source, target, labels = examples(64)
        loss = F.cross_entropy(model.vocabulary_logits(decoder_states(model, source, target)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    source, target, labels = examples(200)
    matches = []
    for weights in alignments(model, source, target):
        aligned = weights[:-1].argmax(1)  # the last row predicts the end of the sequence
        along = np.arange(len(aligned))
        matches.append(aligned == (along[::-1] if backwards else along))
    assert np.concatenate(matches).mean() > 0.95
    with torch.no_grad():
        predicted = model.vocabulary_logits(decoder_states(model, source, target)).argmax(-1)
    assert (predicted == labels).float().mean().item() > 0.95
