"""Is the model the model? Every stage against recorded or running transformers; what a checkpoint holds."""
