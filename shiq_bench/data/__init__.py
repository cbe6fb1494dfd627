"""Trajectories on their way to a loss: dataset folders, pairs, groups, layouts, collation."""
