"""The baselines: training steps as the example scripts make them, from stock parts.

Padding to the maximum, ``DataCollatorForLanguageModeling``, SDPA attention, the vocabulary head at every position with
-100 for positions without a prediction, torch's plain AdamW, gradients clipped to 1, dropout 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AlbertForPreTraining,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    DistilBertForMaskedLM,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from benchmarks.contest import Step
from benchmarks.material import Material
from benchmarks.workload import LEARNING_RATE, SEED, Workload
from distill.student import StudentSection, student_config
from finetune.examples import TextExamples
from pretrain.examples import FlatExamples
from pretrain.model import bert_config
from pretrain.objectives import albert
from pretrain.objectives.causal_lm import gpt2_config
from pretrain.objectives.electra import Config, electra_config, generator_sizes

DROPOUT = 0.1
CPU = torch.device("cpu")
Example = dict[str, Any]
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Baseline:
    """The parts in which the baselines differ."""

    trained: nn.Module
    examples: Callable[[np.ndarray], list[Example]]
    """Turns rows into the entries of the script's tokenized data set."""
    collate: Callable[[list[Example]], Any]
    loss: Callable[[Inputs], Tensor]
    work: Callable[[Inputs], int] = lambda inputs: int(inputs["attention_mask"].sum())
    """The amount of work in a batch: real tokens."""


def step(build: Callable[[], Baseline], *, bf16: bool, device: torch.device = CPU) -> Step:
    """The training step, from a list of examples to the updated weights."""
    torch.manual_seed(SEED)
    baseline = build()
    trained = baseline.trained.train().to(device)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)

    def run(examples: list[Example]) -> int:
        inputs = baseline.collate(examples)
        tokens = baseline.work(inputs)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = baseline.loss({name: tensor.to(device) for name, tensor in inputs.items()})
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return tokens

    return lambda rows: partial(run, baseline.examples(rows))


def baseline_of(workload: Workload) -> Callable[[Workload, Material, Any], Baseline]:
    """The function that makes the workload's baseline."""
    if workload.stage == "finetune":
        return classifier
    return {"electra": electra, "causal_lm": causal, "distilbert": distilbert, "tinybert": tinybert}.get(
        workload.learns, language_model
    )


def stock(config: Any, attention: str = "sdpa") -> Any:
    """A configuration with the library's attention and its usual GELU, faster on a CPU than the tanh form."""
    return type(config)(**{**config.to_dict(), "attn_implementation": attention, "hidden_act": "gelu"})


def language_model(workload: Workload, material: Material, source: Any) -> Baseline:
    """``run_mlm``, also with BERT's or ALBERT's pairs. The stock collator masks single tokens, not ALBERT's n-grams."""
    tokenizer = material.tokenizer
    bert = stock(bert_config(workload.model(DROPOUT), tokenizer))
    if workload.learns == "albert":
        config = albert.albert_config(albert.Config(), workload.model(DROPOUT), tokenizer)
        model, label = AlbertForPreTraining(stock(config)), "sentence_order_label"
    else:
        pairs = workload.learns == "bert"
        model, label = (BertForPreTraining(bert), "next_sentence_label") if pairs else (BertForMaskedLM(bert), None)
    return Baseline(
        model,
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length, label=label),
        masking(tokenizer),
        lambda inputs: model(**inputs).loss,
    )


def causal(workload: Workload, material: Material, source: Any) -> Baseline:
    """``run_clm``: the stock model on blocks of concatenated text, logits and loss at every position."""
    config = gpt2_config(workload.model(DROPOUT), source.tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(**{**config.to_dict(), "attn_implementation": "sdpa", "activation_function": "gelu"})
    )

    def examples(rows: np.ndarray) -> list[Example]:
        blocks = source.collate(rows).input.ids.view(-1, workload.sequence_length).tolist()
        ones = [1] * workload.sequence_length
        return [{"input_ids": block, "attention_mask": ones, "labels": block} for block in blocks]

    return Baseline(model, examples, default_data_collator, lambda inputs: model(**inputs).loss)


def masking(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForLanguageModeling:
    """The stock collator, 15 % masked."""
    return DataCollatorForLanguageModeling(cast(Any, tokenizer), mlm_probability=0.15)


def listed(
    flat: FlatExamples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_to: int | None = None,
    label: str | None = None,
    special: bool = True,
) -> list[Example]:
    """Examples as dictionaries of lists, as ``datasets`` returns them, padded to ``pad_to`` if given.

    ``label`` names the column of the labels; ``special`` adds the column that the masking collator reads.
    """
    pad_id = cast(int, tokenizer.pad_token_id)
    found = []
    ends = np.cumsum(flat.lengths)
    for end, length, value in zip(ends, flat.lengths, flat.labels, strict=True):
        rows, missing = slice(end - length, end), (pad_to or int(length)) - int(length)
        example: Example = {
            "input_ids": [*flat.input_ids[rows].tolist(), *[pad_id] * missing],
            "token_type_ids": [*flat.token_type_ids[rows].tolist(), *[0] * missing],
            "attention_mask": [1] * int(length) + [0] * missing,
        }
        if special:
            example["special_tokens_mask"] = [*flat.special[rows].astype(int).tolist(), *[1] * missing]
        if label:
            example[label] = int(value)
        found.append(example)
    return found


_ELECTRA = Config(embedding_size=128, generator_fraction=0.25)


def electra(workload: Workload, material: Material, source: Any) -> Baseline:
    """The usual community script: two stock models with tied embeddings. The generator's logits are computed at every
    position, its samples replace the masked tokens, and the discriminator reads all."""
    tokenizer, sizes = material.tokenizer, workload.model(DROPOUT)
    assert _ELECTRA.embedding_size is not None
    discriminator = ElectraForPreTraining(stock(electra_config(sizes, _ELECTRA.embedding_size, tokenizer)))
    smaller = generator_sizes(_ELECTRA, sizes)
    generator = ElectraForMaskedLM(stock(electra_config(smaller, _ELECTRA.embedding_size, tokenizer)))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()

    def loss(inputs: Inputs) -> Tensor:
        guessed = generator(**inputs)
        ids, labels = inputs["input_ids"].clone(), inputs["labels"]
        masked = labels != -100
        with torch.no_grad():
            ids[masked] = torch.multinomial(guessed.logits[masked].float().softmax(-1), 1)[:, 0]
        replaced = masked & (ids != labels)
        others = {name: inputs[name] for name in ("attention_mask", "token_type_ids")}
        detected = discriminator(input_ids=ids, labels=replaced.long(), **others)
        return guessed.loss + 50.0 * detected.loss

    return Baseline(
        nn.ModuleList([generator, discriminator]),
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length),
        masking(tokenizer),
        loss,
    )


def distilbert(workload: Workload, material: Material, source: Any) -> Baseline:
    """``distiller.py``: both models' logits at every real position, T=2, weights 5, 2 and 1. Its batches have similar
    lengths and are padded to the longest; the masks are the stock collator's."""
    tokenizer, temperature = material.tokenizer, 2.0
    teacher = BertForMaskedLM(stock(bert_config(workload.model(DROPOUT), tokenizer))).eval().requires_grad_(False)
    section = StudentSection(type="distilbert", num_hidden_layers=workload.layers // 2)
    student = DistilBertForMaskedLM._from_config(student_config(section, teacher.config), attn_implementation="sdpa")

    def loss(inputs: Inputs) -> Tensor:
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        mine = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        real = mask.bool()[:, :, None].expand_as(mine.logits)
        width = mine.logits.shape[-1]
        known, taught = (logits.masked_select(real).view(-1, width) for logits in (mine.logits, theirs.logits))
        soft = [(logits / temperature).float() for logits in (known, taught)]
        divergence = F.kl_div(soft[0].log_softmax(-1), soft[1].softmax(-1), reduction="batchmean") * temperature**2
        mlm = F.cross_entropy(mine.logits.view(-1, width).float(), labels.view(-1), ignore_index=-100)
        hidden = [output.hidden_states[-1] for output in (mine, theirs)]
        inside = mask.bool()[:, :, None].expand_as(hidden[0])
        rows = [states.masked_select(inside).view(-1, states.shape[-1]).float() for states in hidden]
        angle = F.cosine_embedding_loss(rows[0], rows[1], rows[0].new_ones(len(rows[0])))
        return 5.0 * divergence + 2.0 * mlm + angle

    return Baseline(student, lambda rows: listed(source.lay_out(rows), tokenizer), masking(tokenizer), loss)


def tinybert(workload: Workload, material: Material, source: Any) -> Baseline:
    """``general_distill.py``: mean squared errors of attention and hidden states of every other layer, with padding.
    Stock models return attention probabilities instead of the script's scores, at the same cost."""
    tokenizer = material.tokenizer
    teacher = BertModel(stock(bert_config(workload.model(DROPOUT), tokenizer), "eager")).eval().requires_grad_(False)
    section = StudentSection(num_hidden_layers=workload.layers // 2)
    student = BertModel._from_config(student_config(section, teacher.config), attn_implementation="eager")
    fit = nn.Linear(student.config.hidden_size, teacher.config.hidden_size)

    def loss(inputs: Inputs) -> Tensor:
        mine = student(**inputs, output_hidden_states=True, output_attentions=True)
        with torch.no_grad():
            theirs = teacher(**inputs, output_hidden_states=True, output_attentions=True)
        pairs = [*zip(mine.attentions, theirs.attentions[1::2], strict=True)]
        pairs += [(fit(own), other) for own, other in zip(mine.hidden_states, theirs.hidden_states[::2], strict=True)]
        return torch.stack([F.mse_loss(own.float(), other.float()) for own, other in pairs]).sum()

    return Baseline(
        nn.ModuleList([student, fit]),
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length, special=False),
        default_data_collator,
        loss,
    )


def classifier(workload: Workload, material: Material, source: TextExamples) -> Baseline:
    """``run_glue``: the stock classifier, padded to the longest of a batch."""
    model = BertForSequenceClassification(stock(bert_config(workload.model(DROPOUT), material.tokenizer)))
    return Baseline(
        model,
        lambda rows: listed(flat(source, rows), material.tokenizer, label="label", special=False),
        DataCollatorWithPadding(cast(Any, material.tokenizer)),
        lambda inputs: model(**inputs).loss,
    )


def evaluation(workload: Workload, material: Material, source: TextExamples, *, bf16: bool) -> Step:
    """The loop of ``Trainer.predict`` over the rows in their order."""
    torch.manual_seed(SEED)
    baseline, size = classifier(workload, material, source), workload.batch_size
    model = baseline.trained.eval()

    def run(examples: list[Example]) -> int:
        logits, losses, tokens = [], [], 0
        for start in range(0, len(examples), size):
            inputs = baseline.collate(examples[start : start + size])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs: Any = model(**inputs)
            logits.append(outputs.logits.float().numpy())
            losses.append(outputs.loss.item())
            tokens += int(inputs["attention_mask"].sum())
        assert len(np.concatenate(logits)) == len(examples)
        return tokens

    return lambda rows: partial(run, baseline.examples(rows))


def flat(source: TextExamples, rows: np.ndarray) -> FlatExamples:
    """Examples of a task in the form of those of a corpus."""
    which = source.members(rows["index"])
    ids, types = source.sequences.lay_out(which)
    assert source.labels is not None
    nothing = np.zeros(len(ids), dtype=bool)
    return FlatExamples(ids, types, rows["length"], nothing, rows["key"], source.labels[rows["index"]])
