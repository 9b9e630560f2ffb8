"""Labs on how methods are judged: by accuracy, tokens, FLOPs and time."""
