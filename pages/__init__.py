"""Pages for people: the report over runs, what a model does with a text, and screenshots of both."""
