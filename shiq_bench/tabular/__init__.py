"""Worlds that are solved exactly, and policies that are tables."""
