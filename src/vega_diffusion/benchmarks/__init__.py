"""Measurements of speed, memory and size, and the files that hold them."""
