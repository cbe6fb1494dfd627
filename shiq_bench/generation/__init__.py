"""Sampling: one interface, two engines, and the loop that plays episodes."""
