"""Optimizers, parameter groups, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Decay, Duration, Epsilon, Factor, LearningRate, Probability, Weight
from bertillery.engine.sharding import is_split, whole


class OptimSection(Section):
    """The optimizer and its learning rate."""

    algorithm: Literal["bert_adam", "adamw", "lamb"] = "bert_adam"
    """``bert_adam``: BERT's own, without bias correction; ``adamw``: torch's; ``lamb``: ALBERT's, for large batches."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    epsilon: Epsilon = 1e-6
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.01
    """Decoupled; vectors (LayerNorms and biases) are exempt."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer as a share of the next layer's; ELECTRA is fine-tuned with 0.8, Large with 0.9."""
    head_learning_rate: LearningRate | None = None
    """Peak for what lies outside of the encoder or decoder, such as KagNet's reader of graphs; the same where not
    given."""
    max_gradient_norm: Factor = 1.0
    """Gradients are scaled down to this norm."""
    clipping: Literal["global", "tensor"] = "global"
    """Whether that norm is of all gradients together or, as in TinyBERT's code, of each tensor's."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Loss whose gradients are clipped: the mean over a step's examples (or tokens), or, as ELECTRA is fine-tuned,
    their sum, whose gradients nearly always exceed the norm."""
    schedule: Literal[
        "bert", "electra", "gpt1", "gpt1_linear", "linear", "cosine", "inverse_sqrt", "constant", "warmup_stable_decay"
    ] = "bert"
    """Shape of the learning rate after warm-up; see :func:`learning_rate`."""
    warmup: Duration = Duration("1%")
    """Linear warm-up from 0."""
    cooldown: Duration = Duration("10%")
    """Length of the decay in ``warmup_stable_decay``."""
    final_share: Probability = 0.0
    """What is left of the peak at the end of ``cosine``."""


class BertAdam(torch.optim.AdamW):
    """Adam of BERT's and ELECTRA's code: without bias correction, epsilon outside the root, decay times the rate.

    Torch's update divides the moments by ``1 - beta**step``. With a step count at which both divisors round to 1, the
    fused kernel computes the original ``p -= lr * (m / (sqrt(v) + eps) + wd * p)``. The count is float32, in which
    adding 1 to 1e9 changes nothing.
    """

    _never_corrected = 1e9

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.tensor(self._never_corrected, dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


_torch = cast(Any, torch)  # torch's type hints lack the _foreach functions of its optimizers


class Lamb(torch.optim.Optimizer):
    """LAMB of ALBERT's code (You et al. 2020, algorithm 2, without bias correction and bounds).

    The update of BERT's Adam, ``u = m / (sqrt(v) + eps) + wd * p``, is scaled for each tensor by the tensor's norm over
    the norm of ``u`` (1 if either is 0). Groups with ``adapted=False`` (LayerNorms and biases) are not scaled. As in
    torch's fused optimizers, a step changes nothing if the attribute ``found_inf`` is 1.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "adapted": True})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        found: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            first = [self.state[parameter]["exp_avg"] for parameter in parameters]
            second = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
            beta1, beta2 = group["betas"]
            with _undone(first, found):
                _torch._foreach_lerp_(first, gradients, 1 - beta1)
            with _undone(second, found):
                _torch._foreach_mul_(second, beta2)
                _torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            scale = _torch._foreach_sqrt(second)
            _torch._foreach_add_(scale, group["eps"])
            update = _torch._foreach_div(first, scale)
            _torch._foreach_add_(update, parameters, alpha=group["weight_decay"])
            if group["adapted"]:
                norms = torch.stack(_torch._foreach_norm(parameters))
                lengths = torch.stack(_torch._foreach_norm(update))
                ratios = torch.where((norms > 0) & (lengths > 0), norms / lengths, 1.0)
                _torch._foreach_mul_(update, list(ratios.unbind()))
            with _undone(parameters, found):
                _torch._foreach_add_(parameters, update, alpha=-group["lr"])


@contextmanager
def _undone(tensors: Sequence[Tensor], found: Tensor | None) -> Iterator[None]:
    """Undo the block's changes to the tensors if ``found`` is 1, without the host reading it.

    Multiplying the update by 0 would not do that: 0 times infinity is not 0.
    """
    before = [] if found is None else [tensor.clone() for tensor in tensors]
    yield
    if found is not None:
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(found == 0, tensor, old, out=tensor)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, head_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Groups that partition the trainable parameters: tensors of two and more dimensions are decayed, embeddings among
    them as in the original; vectors (LayerNorms and biases) are exempt.

    ``adapted`` is read by :class:`Lamb` alone. ``rate_share``, read by the loop, is the group's share of the learning
    rate: with a ``layer_decay`` d it is d^(n + 2 - depth) in a model of n layers, where depth is that of
    :func:`layer_depths`, or n + 2 for all other parameters (ELECTRA's ``_get_layer_lrs``); ``head_factor`` times that
    for parameters outside of encoders and decoders. Raises ``ConfigError`` where ``layer_decay`` is not 1 and the model
    has no layers.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths = {} if layer_decay == 1 else layer_depths(model)
    if layer_decay != 1 and not any(depths.values()):
        classes = [type(each).__name__ for each in model.modules() if isinstance(each, PreTrainedModel)]
        raise ConfigError(
            f"optim.layer_decay: given {layer_decay}, but {[*classes, type(model).__name__][0]} has no list of layers "
            "whose learning rates could differ; give optim.layer_decay=1"
        )
    head = max((depths.get(name, 0) for name, _ in named), default=0) + 2
    bodies = [
        module for module in model.modules() if isinstance(module, PreTrainedModel) and module.base_model is module
    ]
    inside = {id(parameter) for body in bodies for parameter in body.parameters()}
    groups: dict[tuple[int, bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        factor = 1.0 if id(parameter) in inside else head_factor
        groups.setdefault((depths.get(name, head), parameter.ndim >= 2, factor), []).append(parameter)
    return [
        {
            "params": groups[depth, decayed, factor],
            "weight_decay": weight_decay if decayed else 0.0,
            "adapted": decayed,
            "rate_share": layer_decay ** (head - depth) * factor,
        }
        for depth, decayed, factor in sorted(groups, reverse=True)
    ]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of parameters, by name, in the encoders and decoders of transformers' classes that the model holds.

    Layers are the items of a ``ModuleList``, whatever its name: ``encoder.layer``, ``transformer.h``, or ALBERT's
    groups of shared layers. A parameter of layer i, counted from 0, has depth i + 1, one of a module registered before
    the list (embeddings and their projection) depth 0. Modules behind the layers, such as a pooler, and heads have no
    depth.
    """
    found: dict[str, int] = {}

    def descend(module: nn.Module, prefix: str) -> bool:
        """Whether there are layers below the module."""
        has_layers, before = False, [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
        for name, child in module.named_children():
            path = f"{prefix}{name}."
            if isinstance(child, nn.ModuleList) and len(child):
                has_layers = True
                for place, layer in enumerate(child):
                    found.update({f"{path}{place}.{each}": place + 1 for each, _ in layer.named_parameters()})
            elif descend(child, path):
                has_layers = True
            elif not has_layers:
                before += [f"{path}{each}" for each, _ in child.named_parameters()]
        if has_layers:
            found.update(dict.fromkeys(before, 0))
        return has_layers

    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            descend(module, f"{name}." if name else "")
    return found


def build_optimizer(section: OptimSection, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer of a model's trainable parameters; raises what :func:`parameter_groups` raises."""
    factor = (section.head_learning_rate or section.learning_rate) / section.learning_rate
    groups = parameter_groups(model, section.weight_decay, section.layer_decay, factor)
    settings: dict[str, Any] = {"lr": section.learning_rate, "betas": section.betas, "eps": section.epsilon}
    algorithms = {"bert_adam": BertAdam, "adamw": partial(torch.optim.AdamW, fused=True), "lamb": Lamb}
    return algorithms[section.algorithm](groups, **settings)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, clipping: str) -> Tensor:
    """Scale gradients down to a norm of ``most`` in place; returns the global norm (), before that.

    ``clipping`` is :attr:`OptimSection.clipping`. Does not wait for a GPU. All processes call it if parameters are
    split over them.
    """
    gradients = [_numbers(parameter) for parameter in parameters if parameter.grad is not None]
    together = [gradients] if clipping == "global" else [[gradient] for gradient in gradients]
    norms = [nn.utils.get_total_norm(tensors, foreach=True) for tensors in together]
    for tensors, norm in zip(together, norms, strict=True):
        factor = torch.clamp(most / (norm + 1e-6), max=1.0)
        if is_split(factor) or factor.device.type != "cpu" or factor != 1:  # times 1 changes nothing
            _torch._foreach_mul_(tensors, factor)
    return whole(norms[0]) if len(norms) == 1 else torch.stack([whole(norm) for norm in norms]).norm()


def _numbers(parameter: nn.Parameter) -> Tensor:
    """The gradient, or what is not zero in that of a table (:mod:`bertillery.engine.tables`)."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        gradient = parameter.grad = gradient.coalesce()
        return gradient.values()
    return gradient


def _half_cosine(share: float) -> float:
    """From 1 to 0 as ``share`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def learning_rate(section: OptimSection, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each update, counted from 0, as a pure function.

    With T steps, W of warm-up and C of cooldown, for the update t as a share of the peak:

    - ``bert``: t/W, then 1 - t/T; it jumps down where warm-up ends (optimization.py of the BERT repository).
    - ``electra``: (1 - t/T) * min(1, t/W).
    - ``linear``: t/W, then (T - t) / (T - W), what transformers calls linear.
    - ``gpt1``: t/W, then (1 + cos(pi t/T)) / 2: its cosine counts from update 0 (opt.py of the finetune-transformer-lm
      repository).
    - ``gpt1_linear``: t/W up to W, then 1 - t/T. W is not rounded to whole updates, so the first one has rate 0 (the
      same file).
    - ``cosine``: t/W, then half a cosine to ``final_share`` of the peak.
    - ``inverse_sqrt``: t/W, then sqrt(W/t), "noam" (Vaswani et al. 2017, 5.3).
    - ``constant``: t/W, then 1.
    - ``warmup_stable_decay``: t/W, then 1, then linear to 0 over the last C steps.
    """
    total = max(1, total_steps)
    warmup = section.warmup.to_steps(total_steps=total)
    cooldown = max(1, section.cooldown.to_steps(total_steps=total))
    if warmup > total:
        raise ConfigError(f"optim.warmup: {warmup} steps are more than the run's {total}; give fewer, or a percentage")
    after: dict[str, Callable[[int], float]] = {
        "bert": lambda t: 1 - t / total,
        "electra": lambda t: 1 - t / total,
        "linear": lambda t: (total - t) / max(1, total - warmup),
        "gpt1_linear": lambda t: 1 - t / total,
        "gpt1": lambda t: _half_cosine(t / total),
        "cosine": lambda t: final + (1 - final) * _half_cosine((t - warmup) / max(1, total - warmup)),
        "inverse_sqrt": lambda t: math.sqrt(max(1, warmup) / max(1, t)),
        "constant": lambda t: 1.0,
        "warmup_stable_decay": lambda t: min(1.0, (total - t) / cooldown),
    }
    shape, final = after[section.schedule], section.final_share

    def rate(step: int) -> float:
        if section.schedule == "gpt1_linear":
            share, rising = step / total, float(section.warmup.exactly(total_steps=total)) / total
            return section.learning_rate * (share / rising if rising and share <= rising else 1 - share)
        rise = min(1.0, step / warmup) if warmup else 1.0
        if section.schedule == "electra":
            return section.learning_rate * shape(step) * rise
        return section.learning_rate * (rise if step < warmup else shape(step))

    return rate
