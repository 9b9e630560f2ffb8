"""Is the model the model? Every stage against transformers; what a checkpoint holds. Commands `verify`, `inspect`."""
