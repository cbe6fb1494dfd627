"""Evaluation: fresh episodes of a policy, scored by the task, with exact KL along the sampled paths."""
