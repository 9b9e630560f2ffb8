"""The promises that can be named of a broken file, and the small cases and runs in which one is looked at."""
