"""Numbers that kernels store are rounded once; refusals of any number can be told."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from implementations.common.check import check_block_size, check_number, shown

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(st.floats(allow_nan=False, allow_infinity=False, width=64), st.sampled_from(DTYPES))
@example(1 + 2**-11 + 2**-40, torch.float16)  # through float32 it would be 1
@example(1 + 2**-8 + 2**-40, torch.bfloat16)
@example(-(2.0**-150), torch.float32)  # half of the least subnormal: to even, -0
@example(2.0**-150 * (1 + 2**-30), torch.float32)
@example(65504.0, torch.float16)
def test_a_number_is_rounded_once_to_nearest_even(value, dtype):
    info = torch.finfo(dtype)
    if abs(value) > info.max:
        with pytest.raises(ValueError, match="x must be at most"):
            check_number("x", value, dtype)
        return
    found = check_number("x", value, dtype)
    assert torch.tensor(found, dtype=dtype).item() == found  # it is of the dtype
    assert np.signbit(found) == np.signbit(value)
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    word = int(torch.tensor(abs(found), dtype=dtype).view(bits))
    beside = [torch.tensor(w, dtype=bits).view(dtype).item() for w in (word - 1, word + 1)]
    distance = abs(Fraction(abs(found)) - Fraction(abs(value)))
    for other in filter(np.isfinite, beside):
        further = abs(Fraction(other) - Fraction(abs(value)))
        assert distance < further or distance == further and word % 2 == 0


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 0.0, -0.0, 3, -7])
def test_what_needs_no_rounding_stays(value):
    found = check_number("x", value, torch.float16)
    assert found == value and np.signbit(found) == np.signbit(float(value))


def test_no_default_device_is_asked():
    with torch.device("meta"):  # where a tensor would have no value
        assert check_number("x", 0.1, torch.float32) == np.float32(0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_thousands_of_digits_are_told_by_their_bits(sign):
    huge = sign * 10**5000
    assert shown(huge) == "an int of 16610 bits" and shown(sign * 12) == str(sign * 12)
    with pytest.raises(ValueError, match="got an int of 16610 bits"):
        check_number("x", huge, torch.float32)
    with pytest.raises(ValueError, match="got an int of 16610 bits"):
        check_block_size(huge)
