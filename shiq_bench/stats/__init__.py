"""Pure functions on arrays: intervals, tests, aggregates. No torch."""
