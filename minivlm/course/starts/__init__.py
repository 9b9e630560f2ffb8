"""Methods to start one's own from. `run.py new` copies one of these files."""
