"""The `vega` command: one file a verb; verbs parse, call, print and return an exit code."""
