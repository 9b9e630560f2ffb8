"""Files that are only for an exercise: what a student is to write is left out of the stub."""
