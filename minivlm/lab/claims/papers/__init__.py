"""What each paper claims, as a table of Claims: facts and figures only."""
