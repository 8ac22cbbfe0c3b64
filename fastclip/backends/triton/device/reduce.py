"""Reducing the elements of a chunk, or of several small tensors, as Triton functions."""

from __future__ import annotations

import triton
import triton.language as tl

from .words import (
    SLOTS,
    VECTOR_BYTES,
    bytes_of,
    head_of,
)

# What a kernel sums up.
SUM_SQ = tl.constexpr(0)
SUM_SQ_WIDE = tl.constexpr(1)  # in float64 throughout
ABS_SUM = tl.constexpr(2)
ABS_MAX = tl.constexpr(3)
POWER_SUM = tl.constexpr(4)

THREADS = tl.constexpr(256)
# The 16-byte loads that a thread has in flight: two times four blocks. With 256 threads, and two
# programs on a multiprocessor at 128 registers, that makes 64 KiB, more than the latency times the
# bandwidth of a multiprocessor.
LOADS = tl.constexpr(8)
COLUMNS = tl.constexpr(128)  # of small tensors that are read at a time
POWER_COLUMNS = tl.constexpr(32)  # one element a thread: a power takes many registers
EDGE = tl.constexpr(8)  # more than the elements before or after the 16-byte vectors

INF = tl.constexpr(float("inf"))
LOST = tl.constexpr(2.0**-102)  # below this for each element, squares in float32 have lost digits


@triton.jit
def pointer_to(address, T: tl.constexpr):
    """Return a pointer to an address on a 16-byte boundary."""
    # Unmasked loads are 16 bytes wide only if the pointer itself has this hint.
    return tl.multiple_of(address.to(tl.pointer_type(T)), VECTOR_BYTES)


@triton.jit
def join(a, b, KIND: tl.constexpr):
    """Combine sums or maxima, both float64 and not negative."""
    if KIND == ABS_MAX:
        # The bits order as integers, with NaN above inf.
        bits = tl.maximum(a.to(tl.int64, bitcast=True), b.to(tl.int64, bitcast=True))
        return bits.to(tl.float64, bitcast=True)
    else:
        return a + b


@triton.jit
def join_all(values, KIND: tl.constexpr, axis: tl.constexpr = None):
    """Combine a block of sums or maxima along an axis, in one fixed tree."""
    if KIND == ABS_MAX:
        return tl.max(values.to(tl.int64, bitcast=True), axis).to(tl.float64, bitcast=True)
    else:
        return tl.sum(values, axis)


@triton.jit
def term(x, norm_type, KIND: tl.constexpr):
    """Return what an element adds, in float64."""
    x = x.to(tl.float64)
    if KIND == POWER_SUM:
        return tl.exp2(norm_type * tl.log2(tl.abs(x)))
    elif KIND == SUM_SQ or KIND == SUM_SQ_WIDE:
        return x * x
    else:
        return tl.abs(x)


@triton.jit
def four_squares(a, b, c, d, T: tl.constexpr):
    """Add four squares in float32, in pairs: two roundings, then float64."""
    aa, bb, cc, dd = a * a, b * b, c * c, d * d
    squares = ((aa + bb) + (cc + dd)).to(tl.float64)
    if T == tl.float32:
        # This is exactly what rounding dropped from each square. Squares of 16-bit elements are
        # exact.
        dropped = (tl.fma(a, a, -aa) + tl.fma(b, b, -bb)) + (tl.fma(c, c, -cc) + tl.fma(d, d, -dd))
        squares += dropped.to(tl.float64)
    return squares


@triton.jit
def low_half(words, T: tl.constexpr):
    """Return the first of the two elements in each word as float32."""
    if T == tl.bfloat16:
        return (words << 16).to(tl.float32, bitcast=True)
    else:
        return words.to(tl.int16).to(T, bitcast=True).to(tl.float32)


@triton.jit
def high_half(words, T: tl.constexpr):
    """Return the second of the two elements in each word as float32."""
    if T == tl.bfloat16:
        return (words & -65536).to(tl.float32, bitcast=True)
    else:
        return (words >> 16).to(tl.int16).to(T, bitcast=True).to(tl.float32)


@triton.jit
def magnitude(x):
    """Return the bits of a magnitude: they order as the magnitudes do, with NaN above inf."""
    if x.dtype == tl.float64:
        return tl.abs(x).to(tl.int64, bitcast=True)
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def add_words(sums, seen, words, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Add a block of words that hold an element each, or two of 16 bits."""
    if bytes_of(T) == 2:
        low, high = low_half(words, T), high_half(words, T)
        if KIND == ABS_MAX:
            seen = tl.maximum(seen, tl.maximum(magnitude(low), magnitude(high)))
        else:
            sums += term(low, norm_type, KIND)
            sums += term(high, norm_type, KIND)
    elif KIND == ABS_MAX:
        seen = tl.maximum(seen, magnitude(words))
    else:
        sums += term(words, norm_type, KIND)
    return sums, seen


@triton.jit
def add_four(sums, seen, a, b, c, d, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Add four blocks of words to ``sums``.

    ``seen`` receives the bits of the largest magnitude, or, where a chunk may need a rescue, those
    of all magnitudes or-ed.
    """
    if KIND == SUM_SQ and T == tl.float32:
        sums += four_squares(a, b, c, d, T)
        seen |= magnitude(a) | magnitude(b) | magnitude(c) | magnitude(d)
    elif KIND == SUM_SQ and T != tl.float64:
        sums += four_squares(low_half(a, T), high_half(a, T), low_half(b, T), high_half(b, T), T)
        sums += four_squares(low_half(c, T), high_half(c, T), low_half(d, T), high_half(d, T), T)
        seen |= (a | b | c | d) & 0x7FFF7FFF
    else:
        sums, seen = add_words(sums, seen, a, norm_type, T, KIND)
        sums, seen = add_words(sums, seen, b, norm_type, T, KIND)
        sums, seen = add_words(sums, seen, c, norm_type, T, KIND)
        sums, seen = add_words(sums, seen, d, norm_type, T, KIND)
    return sums, seen


@triton.jit
def load_four(block_ptr, offsets, count, BLOCK: tl.constexpr, IS_WHOLE: tl.constexpr):
    """Load four blocks, or their first ``count`` words, in whole vectors; other words are 0.

    Without a mask the loads are issued together. With a mask that is the same for a whole vector
    they are as wide.
    """
    if IS_WHOLE:
        a = tl.load(block_ptr + offsets)
        b = tl.load(block_ptr + offsets + BLOCK)
        c = tl.load(block_ptr + offsets + 2 * BLOCK)
        d = tl.load(block_ptr + offsets + 3 * BLOCK)
    else:
        a = tl.load(block_ptr + offsets, mask=offsets < count, other=0)
        b = tl.load(block_ptr + offsets + BLOCK, mask=offsets + BLOCK < count, other=0)
        c = tl.load(block_ptr + offsets + 2 * BLOCK, mask=offsets + 2 * BLOCK < count, other=0)
        d = tl.load(block_ptr + offsets + 3 * BLOCK, mask=offsets + 3 * BLOCK < count, other=0)
    return a, b, c, d


@triton.jit
def add_batch(
    sums,
    seen,
    batch_ptr,
    offsets,
    count,
    norm_type,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Load a batch of LOADS blocks, then add it."""
    a, b, c, d = load_four(batch_ptr, offsets, count, BLOCK, IS_WHOLE)
    e, f, g, h = load_four(batch_ptr + 4 * BLOCK, offsets, count - 4 * BLOCK, BLOCK, IS_WHOLE)
    sums, seen = add_four(sums, seen, a, b, c, d, norm_type, T, KIND)
    return add_four(sums, seen, e, f, g, h, norm_type, T, KIND)


@triton.jit
def reduce_body(body_ptr, vectors, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Reduce 16-byte vectors; return ``sums`` and ``seen`` of add_four()."""
    PER_VECTOR: tl.constexpr = VECTOR_BYTES // bytes_of(body_ptr.dtype.element_ty)
    BLOCK: tl.constexpr = THREADS * PER_VECTOR
    offsets = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    seen = tl.zeros([BLOCK], tl.int64 if T == tl.float64 else tl.int32)
    if KIND == POWER_SUM:
        # One block at a time is enough: a power takes so long that one load hides behind it.
        for start in range(0, vectors * PER_VECTOR, BLOCK):
            rest = tl.multiple_of(vectors * PER_VECTOR - start, PER_VECTOR)
            words = tl.load(body_ptr + start + offsets, mask=offsets < rest, other=0)
            sums, seen = add_words(sums, seen, words, norm_type, T, KIND)
    else:
        batches = vectors // (THREADS * LOADS)
        rest = (vectors % (THREADS * LOADS)).to(tl.int32) * PER_VECTOR
        rest = tl.multiple_of(rest, PER_VECTOR)
        for i in range(batches):
            batch_ptr = body_ptr + i * (LOADS * BLOCK)
            sums, seen = add_batch(
                sums, seen, batch_ptr, offsets, rest, norm_type, BLOCK, T, KIND, True
            )
        if rest > 0:
            batch_ptr = body_ptr + batches * (LOADS * BLOCK)
            sums, seen = add_batch(
                sums, seen, batch_ptr, offsets, rest, norm_type, BLOCK, T, KIND, False
            )
    return sums, seen


@triton.jit
def reduce_chunk(data, count, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Reduce consecutive elements; return their value and what add_four() has seen."""
    SIZE: tl.constexpr = bytes_of(T)
    head = head_of(data, count, SIZE)
    body_ptr = pointer_to(data + head * SIZE, tl.int32 if SIZE == 2 else T)
    vectors = (count - head) * SIZE // VECTOR_BYTES
    sums, seen = reduce_body(body_ptr, vectors, norm_type, T, KIND)
    any_seen = tl.max(seen)
    value = join_all(sums, KIND)
    if KIND == ABS_MAX:
        value = as_magnitude(any_seen)
    tail = head + vectors * (VECTOR_BYTES // SIZE)
    return join(value, reduce_edges(data, head, tail, count, norm_type, T, KIND), KIND), any_seen


@triton.jit
def as_magnitude(bits):
    """Return the float64 of magnitude()'s bits."""
    if bits.dtype == tl.int64:
        return bits.to(tl.float64, bitcast=True)
    else:
        return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def edges_of(head, tail, LANES: tl.constexpr):
    """Return the offsets of the elements before and after a chunk's 16-byte vectors.

    Two times EDGE lanes are enough. The rest lies beyond the chunk.
    """
    lane = tl.arange(0, LANES)
    return tl.where(lane < EDGE, lane, tail + lane - EDGE), (lane >= EDGE) | (lane < head)


@triton.jit
def reduce_edges(data, head, tail, count, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Reduce the elements before the first vector and after the last, which ends at ``tail``."""
    offsets, mask = edges_of(head, tail, 2 * EDGE)
    x = tl.load(data.to(tl.pointer_type(T)) + offsets, mask=mask & (offsets < count), other=0.0)
    return join_all(term(x, norm_type, SUM_SQ_WIDE if KIND == SUM_SQ else KIND), KIND)


@triton.jit
def reduce_rescued(data, count, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Reduce a chunk, again in float64 where its squares left float32's range."""
    value, seen = reduce_chunk(data, count, norm_type, T, KIND)
    if KIND == SUM_SQ and (T == tl.float32 or T == tl.bfloat16):
        # A float32 square overflows above 2^64 and loses digits below 2^-63. A lost square is off
        # by at most 2^-149, so a sum above the limit has lost nothing that counts.
        if not (value < INF) or (seen != 0 and value < count * LOST):
            value, seen = reduce_chunk(data, count, norm_type, T, SUM_SQ_WIDE)
    return value


@triton.jit
def reduce_rows(address, counts, norm_type, T: tl.constexpr, KIND: tl.constexpr):
    """Reduce up to eight small tensors in float64, one for each row."""
    WIDE: tl.constexpr = SUM_SQ_WIDE if KIND == SUM_SQ else KIND
    BLOCK: tl.constexpr = POWER_COLUMNS if KIND == POWER_SUM else COLUMNS
    column = tl.arange(0, BLOCK)[None, :]
    row_ptr = address.to(tl.pointer_type(T))[:, None]
    values = tl.zeros([SLOTS, BLOCK], tl.float64)
    for start in range(0, tl.max(counts).to(tl.int32), BLOCK):
        mask = start + column < counts[:, None]
        x = tl.load(row_ptr + start + column, mask=mask, other=0.0)
        values = join(values, term(x, norm_type, WIDE), KIND)
    return join_all(values, KIND, 1)
