"""What a shape costs, counted without weights: FLOPs, cache, weights. The command `cost`."""
