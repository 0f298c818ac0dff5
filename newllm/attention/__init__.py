"""Attentions, one file each; `kernels` chooses the kernel that fits the bias of the position encoding."""

from newllm.attention.cache import Cache, LayerCache
from newllm.attention.latent import Latent
from newllm.attention.layer import Attention
from newllm.attention.multi_head import MultiHead
from newllm.attention.value_projection import CompressedValues, NarrowValues

__all__ = ["Attention", "Cache", "CompressedValues", "Latent", "LayerCache", "MultiHead", "NarrowValues"]
