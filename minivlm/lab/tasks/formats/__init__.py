"""Readers of the official files: each gives [Question] of a path, and a UserError that names file, entry and field."""
