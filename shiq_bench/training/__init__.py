"""Training of language models: layout, the policy module, the reference pass, one trainer."""
