import pytest

from implementations.common import registry


@pytest.mark.parametrize("kernel", registry.kernels())
def test_each_kernel_is_described_by_a_whole_sentence(kernel):
    first, *_ = registry.spec(kernel).reference.__doc__.splitlines()
    assert first.endswith(".") and first == first.strip()
