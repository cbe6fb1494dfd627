"""Measurements of the engine, each beside a peer or the machine's own rate in the same run. Nothing here is a test."""
