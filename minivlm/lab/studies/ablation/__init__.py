"""ATP's Tables 1 to 5 on another model.

rows.py names the rows and what is compared, study.py trains and scores them, verdicts.py compares.
"""
