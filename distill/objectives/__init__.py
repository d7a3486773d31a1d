"""One file for each method of distillation; ``objective.type`` names it."""
