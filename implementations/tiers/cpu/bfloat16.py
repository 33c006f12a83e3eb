"""bfloat16, which NumPy lacks, as the words of 16 bits that it is stored in."""

import numpy as np


def decode(words: np.ndarray) -> np.ndarray:
    """Words as float32."""
    return (words.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode(values) -> np.ndarray:
    """float32 rounded to words (uint16), to nearest, ties to even."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)
