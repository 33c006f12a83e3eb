"""Forward and backward joined; where queries are few, parts of the keys, merged."""

from implementations.phase5_flash_attention.day31_online_softmax.attention_merge_numba import (
    attention_merge,
)
from implementations.phase5_flash_attention.day32_flash_forward.flash_forward_numba import (
    flash_forward,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward_numba import (
    flash_backward,
)
from implementations.phase5_flash_attention.day35_complete_flash_attention.flash_attention import (
    joined,
)

DIFFERENTIABLE = joined("numba", flash_forward, flash_backward, attention_merge)


def flash_attention(q, k, v, causal, sm_scale):
    return DIFFERENTIABLE(q, k, v, causal, sm_scale)
