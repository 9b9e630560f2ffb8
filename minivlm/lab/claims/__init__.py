"""What three papers claim, each tested by one comparison. Command `claims`."""
