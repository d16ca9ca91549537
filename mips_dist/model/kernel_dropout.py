"""Random bits inside Triton kernels: the numbers of `model.dropout`, two for one hash."""

import triton
import triton.language as tl


@triton.jit
def random_bits(place, seed):
    """Hash int32 places to 32 bits each, uint32: `model.dropout.random_words`."""
    seed = seed.to(tl.uint32, bitcast=True)
    bits = (place.to(tl.uint32, bitcast=True) ^ seed) * 2654435761
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = bits ^ (seed * 747796405)
    bits = (bits ^ (bits >> 15)) * 2221713035
    return bits ^ (bits >> 16)
