"""Accuracy on many questions, with intervals, and the questions. Commands `eval`, `scenes`."""
