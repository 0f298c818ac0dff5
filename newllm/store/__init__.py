"""Run directories: their files, locks and environment. No torch."""
