"""Models in two phases: a recurrence is trained and frozen first, then what reads it."""
