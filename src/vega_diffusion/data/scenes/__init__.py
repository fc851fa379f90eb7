"""Captioned scenes composed from openly licensed emoji art, with exact ground truth."""
