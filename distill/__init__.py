"""Distillation: a large encoder teaches a small one."""
