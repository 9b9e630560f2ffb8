"""Is the model the model? Every stage against transformers; what a checkpoint or a method holds.

Commands: `verify`, `inspect`, `methods`.
"""
