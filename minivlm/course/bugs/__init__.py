"""Find the bug: broken variants of methods and model parts, and a grader.

Command: `bugs`.
"""
