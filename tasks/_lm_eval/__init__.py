"""Tasks of lm-eval that need no hub: ``lm_eval --include_path`` takes this folder."""
