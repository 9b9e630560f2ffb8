"""What is done with a model and a method, in rooms.

All use cli, lineup and draw. Imports run one way: cli, lineup, draw, cost, check, own, score, attention, speed, compare,
train, studies, claims.
"""
