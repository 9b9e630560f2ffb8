"""The course: exercises and their grader, planted bugs, labs, a leaderboard, and a start for a method of one's own.

Everything here may use all other rooms, and nothing uses it.
"""
