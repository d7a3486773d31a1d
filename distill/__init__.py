"""Distillation of encoders into smaller ones."""
