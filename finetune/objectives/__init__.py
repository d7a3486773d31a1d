"""One file for each kind of task; ``task.type`` is the file's name."""
