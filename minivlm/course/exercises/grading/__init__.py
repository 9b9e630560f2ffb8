"""Grading: the process of a student's code (student, calls, wire), the side that asks it (process, sides), grades."""
