"""A method in tiny random models: two ways to the same result, compared."""
