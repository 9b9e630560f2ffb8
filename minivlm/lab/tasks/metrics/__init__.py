"""How answers become a number: one file per metric. Pure Python, with the traps of the released scorers."""
