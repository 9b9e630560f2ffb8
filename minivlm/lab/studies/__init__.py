"""Studies, which are run once and recorded. Commands `ablate`, `tables`, `growth`."""
