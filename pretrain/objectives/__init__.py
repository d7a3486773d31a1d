"""Pretraining objectives, one file each; ``objective.type`` is the name of the file, and nothing lists them.

A file defines ``Config`` (its section of the configuration, an :class:`pretrain.config.ObjectiveSection`),
``source(config, tokens, tokenizer, *, sequence_length, seed)`` (its examples, an
:class:`bertillery.engine.objective.Source` with ``show`` and ``epoch_size``, most often a
:class:`pretrain.examples.DocumentSource`) and ``build(config, model, tokenizer)`` (what is trained, a
:class:`bertillery.engine.objective.Objective`, drawn from torch's global generator).
"""
