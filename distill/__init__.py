"""Distillation: a small student of a large teacher, and the proof that it is worth it."""
