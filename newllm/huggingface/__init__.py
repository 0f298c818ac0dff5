"""Checkpoints in the layout of the Hugging Face hub: released models become run directories."""
