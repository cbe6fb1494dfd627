"""shiq-bench: a fair comparison of reinforcement-learning fine-tuning methods for language models."""

__version__ = "0.1.0"
