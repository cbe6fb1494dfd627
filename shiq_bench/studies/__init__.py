"""Studies: a YAML file that says what is compared, handed to a sweep and drawn from the records."""
