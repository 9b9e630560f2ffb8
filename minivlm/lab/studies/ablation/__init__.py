"""ATP's Tables 1 to 5 on another model."""
