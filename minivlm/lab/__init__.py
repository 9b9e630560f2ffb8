"""What is done with a model and a method: verify, hf (live comparison), draw, cost and tables, bench."""
