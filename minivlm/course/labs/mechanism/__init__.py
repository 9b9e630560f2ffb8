"""Labs on what pruning does inside the model."""
