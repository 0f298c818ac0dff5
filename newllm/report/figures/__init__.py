"""The report's figures: one file per figure, each a function from plain numbers to a matplotlib Figure."""
