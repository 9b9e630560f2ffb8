"""One HTML file that shows methods side by side on one picture: what `compare --html` writes."""
