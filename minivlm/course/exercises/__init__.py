"""Exercises: problems with stubs made from this repository's own files, and their grader. Command: `exercise`."""
