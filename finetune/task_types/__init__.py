"""One file for each task type; ``task.type`` is the file's name."""
