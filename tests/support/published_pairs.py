"""Published perplexities by seed (github.com/misaya-yang/hybrid-rope)."""

import numpy as np

# Ten seeds, one A100: perplexity at 2,048 and at 16,384 tokens of two frequency designs.
SEEDS = (42, 123, 7, 17, 97, 2024, 2025, 999, 2718, 31415)
GEO_2K = np.array([6.767, 6.911, 6.778, 6.620, 6.971, 6.554, 7.194, 7.197, 6.877, 7.163])
HYBRID_2K = np.array([6.592, 6.996, 6.537, 6.374, 6.823, 7.012, 6.836, 6.863, 6.756, 6.489])
GEO_16K = np.array([16.791, 19.683, 19.289, 19.976, 17.763, 21.327, 18.843, 20.598, 17.921, 15.788])
HYBRID_16K = np.array([16.763, 19.275, 18.582, 22.647, 16.172, 22.614, 17.012, 15.097, 14.224, 15.385])
