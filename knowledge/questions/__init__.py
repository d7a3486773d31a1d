"""Multiple-choice questions over a graph: the concepts that they name, and the paths between these."""
