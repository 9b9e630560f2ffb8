"""What is done with a model and a method, in rooms: compare, check, cost, speed, score, attention, train, studies, claims.

All use cli, lineup and draw. Imports run one way: cli, lineup, draw, cost, check, score, attention, speed, compare,
train, studies, claims.
"""
