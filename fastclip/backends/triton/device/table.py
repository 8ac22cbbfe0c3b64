"""Kernels that write words to device memory, carried in their arguments, for a graph's capture."""

from __future__ import annotations

import triton
import triton.language as tl

WORDS = 64

ARGUMENTS = ("call", "first", *(f"w{i}" for i in range(WORDS)))


# fmt: off
@triton.jit(do_not_specialize=ARGUMENTS)
def write_words_kernel(
    call: tl.int64, first: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64,
    w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    w8: tl.int64, w9: tl.int64, w10: tl.int64, w11: tl.int64,
    w12: tl.int64, w13: tl.int64, w14: tl.int64, w15: tl.int64,
    w16: tl.int64, w17: tl.int64, w18: tl.int64, w19: tl.int64,
    w20: tl.int64, w21: tl.int64, w22: tl.int64, w23: tl.int64,
    w24: tl.int64, w25: tl.int64, w26: tl.int64, w27: tl.int64,
    w28: tl.int64, w29: tl.int64, w30: tl.int64, w31: tl.int64,
    w32: tl.int64, w33: tl.int64, w34: tl.int64, w35: tl.int64,
    w36: tl.int64, w37: tl.int64, w38: tl.int64, w39: tl.int64,
    w40: tl.int64, w41: tl.int64, w42: tl.int64, w43: tl.int64,
    w44: tl.int64, w45: tl.int64, w46: tl.int64, w47: tl.int64,
    w48: tl.int64, w49: tl.int64, w50: tl.int64, w51: tl.int64,
    w52: tl.int64, w53: tl.int64, w54: tl.int64, w55: tl.int64,
    w56: tl.int64, w57: tl.int64, w58: tl.int64, w59: tl.int64,
    w60: tl.int64, w61: tl.int64, w62: tl.int64, w63: tl.int64,
):
    """Write 64 words from index ``first`` on: nothing on the host outlives the launch."""
    words = (
        w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15,
        w16, w17, w18, w19, w20, w21, w22, w23, w24, w25, w26, w27, w28, w29, w30, w31,
        w32, w33, w34, w35, w36, w37, w38, w39, w40, w41, w42, w43, w44, w45, w46, w47,
        w48, w49, w50, w51, w52, w53, w54, w55, w56, w57, w58, w59, w60, w61, w62, w63,
    )
    for i in tl.static_range(len(words)):
        tl.store(call.to(tl.pointer_type(tl.int64)) + first + i, words[i])
# fmt: on
