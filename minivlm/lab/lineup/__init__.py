"""Several methods, each with settings and a budget of its own, as eval, compare, cost and bench take them."""
