"""One task a file; each registers itself with ``@task`` and is found by its file name."""
