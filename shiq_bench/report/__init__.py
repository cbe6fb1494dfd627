"""Records to frames, tables, figures and pages; one renderer a format. Reads records and stats alone."""
