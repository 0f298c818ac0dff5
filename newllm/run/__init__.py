"""One run from its configuration to its results; finished runs loaded and evaluated again."""
