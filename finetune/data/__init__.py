"""A task's rows: where they come from, what a column may hold, which split they belong to."""
