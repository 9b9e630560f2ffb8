"""What papers claim, each tested by one comparison, and their other readings. Commands `claims`, `readings`."""
