"""Drawing without torch: what a picture takes once everything is converted, for commands that must start at once."""
