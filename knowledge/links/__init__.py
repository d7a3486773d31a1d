"""Entities that texts mention: found by a dictionary, or given, and laid out over the tokens of a corpus."""
