"""A method of your own, in a file outside this repository.

Commands: `check`.
"""
