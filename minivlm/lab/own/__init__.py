"""A method of one's own, in a file outside this repository.

Commands: `check`.
"""
