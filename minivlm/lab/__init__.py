"""What is done with a model and a method, in rooms.

All use named, cli, lineup and draw. Imports run one way: named, cli, lineup, draw, cost, check, tasks, score,
attention, speed, page, compare, own, train, studies, claims.
"""
