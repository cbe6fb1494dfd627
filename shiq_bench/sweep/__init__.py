"""Sweeps: many runs, over processes and machines, each finished once.

A sweep is a plan: a file of jobs, in ``<results>/.runs``. Workers go through it and take whatever
nobody has; how they are started is an executor's business, and they need to know nothing of each
other but the folder they share.
"""
