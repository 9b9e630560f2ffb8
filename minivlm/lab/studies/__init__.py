"""Studies of papers' tables: they are run once and their results are recorded."""
