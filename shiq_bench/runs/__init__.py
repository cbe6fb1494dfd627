"""One run from its settings to its record, on tables and on language models."""
