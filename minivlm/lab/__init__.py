"""What is done with a model and a method, in rooms: compare, check, cost, speed, score, train, studies.

All use cli, lineup and draw. Imports run one way: cli, lineup, draw, cost, check, score, speed, compare, train, studies.
"""
