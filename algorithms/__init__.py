"""One algorithm a file; each registers itself with ``@algorithm`` and is found by its file name."""
