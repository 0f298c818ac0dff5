"""Packed runs: several runs of one sweep train in one process as one batched model."""
