"""What several commands share: options of methods, the model that is asked for, processes."""
