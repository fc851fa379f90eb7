"""Frozen descriptions of models, runs and requests: pure data, no torch."""
