"""What is stored and found again: specs, records, caches, provenance, leases, the event log. No torch."""
