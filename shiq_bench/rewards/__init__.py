"""Reward models: scoring dialogues with one, fitting one to preference pairs, and judging how good it is."""
