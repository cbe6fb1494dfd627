"""Run store, statistics and tables: everything that reads run records. No torch, no GPU."""
