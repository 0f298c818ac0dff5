"""Configurations: composed from YAML groups, validated against constructors, named after their contents.

cfg = newllm.compose(["pos_encoding=alibi", "attention=mla", "kv_dim=64"])
"""

from newllm.config.compose import compose
from newllm.config.identity import differences, effective, run_directory, signature, slug

__all__ = ["compose", "differences", "effective", "run_directory", "signature", "slug"]
