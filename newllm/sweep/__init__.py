"""Sweeps: planned once, frozen on disk, run by a launcher. Works on run directories and imports no model."""
