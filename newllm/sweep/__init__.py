"""Sweeps: planned once, frozen on disk, run by a launcher. Knows run directories, not tensors."""
