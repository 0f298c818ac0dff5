"""Packed runs: several runs of one sweep train in one process as one batched model.

`alike` says which runs can; `twin` makes of their models one that takes all their rows at once; `step` makes the steps
that several training loops want; `together` drives the loops.
"""
