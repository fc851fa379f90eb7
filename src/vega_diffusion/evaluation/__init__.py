"""How well a model follows prompts: suites, judgement, runs, scores. Never a loss, a reward or a filter of training."""
