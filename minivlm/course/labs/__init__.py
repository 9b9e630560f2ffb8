"""Experiments, a screen of code each: a question, a prediction, a measurement, and what its numbers say.

form.py has what all share, exam.py the shipped model and its questions, drawing.py intervals as a picture. mechanism/
shows what pruning does inside the model, measuring/ how methods are judged.
"""
