"""What numbers a setting may be: each kind of number with the range in which it means something.

The upper ends lie far above what anybody trains with. They are there because a slip of the keyboard, or a file that
came from elsewhere, else ends in a process that the system kills. Numbers that are not finite are no settings at all
(``Section``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from engine.duration import Duration, check_positive

Count = Annotated[int, Field(ge=1, le=10**12)]
"""How many examples, tokens, steps or bytes."""
Runs = Annotated[int, Field(ge=1, le=100_000)]
"""How many of what is large by itself: runs, trials, checkpoints."""
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Processes or threads of one machine."""
Depth = Annotated[int, Field(ge=1, le=1000)]
"""How many layers, or which one, counted from 1."""
Width = Annotated[int, Field(ge=1, le=2**17)]
"""Of a layer, or the number of its heads."""
Tokens = Annotated[int, Field(ge=1, le=2**20)]
"""Length of a sequence."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What random numbers are drawn by."""
LearningRate = Annotated[float, Field(gt=0, le=100)]
"""A learning rate, or the smallest and the largest of several."""
Epsilon = Annotated[float, Field(gt=0, le=1)]
"""What keeps a division from failing."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Share that is dropped; of all of it nothing would be left."""
Probability = Annotated[float, Field(ge=0, le=1)]
"""Of an event that may never or always happen."""
Share = Annotated[float, Field(gt=0, lt=1)]
"""A part that is neither nothing nor the whole."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a term in a sum; at 0 it does not count."""
Factor = Annotated[float, Field(gt=0, le=1e12)]
"""What something is multiplied or divided by, or cut to."""
Length = Annotated[Duration, AfterValidator(check_positive)]
"""A duration that is not 0."""
