"""One call's list and settings as int64 words in device memory: what the kernels are given.

The words are the fields below, then a row for each tensor in columns: every address, then every
count with its dtype in the lowest two bits, then every first slot, and, for results out of place,
every target's address. Slots and groups are as in csrc/gpu_work.h: a tensor of SMALL_BYTES or more
is cut into chunks, a group of eight slots each; a smaller one takes a slot, and up to eight that
follow one another share a group.

A kernel's only argument is the address of the words, so that no list makes Triton compile a kernel
again, and a launch costs the host the same for every list.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The fields, by their index. An address of 0 is none; numbers are float64 as their bits.
BARRIER = tl.constexpr(0)  # 0 before the launch: programs that have arrived
TENSORS = tl.constexpr(1)
CHUNK_SIZE = tl.constexpr(2)  # elements, a multiple of every batch
GROUPS = tl.constexpr(3)
PARTIALS = tl.constexpr(4)  # float64, one for each group
SUMS = tl.constexpr(5)  # float64, one for each tensor
NORM_TYPE = tl.constexpr(6)  # a number
FOUND_INF = tl.constexpr(7)  # float32: set if an element is inf or NaN; then nothing is written
TOTAL = tl.constexpr(8)  # float64: all partials combined, no root
TOTAL_NORM = tl.constexpr(9)  # this and the next two: float32, or float64 if IS_FLOAT64
CLIP_COEF = tl.constexpr(10)
MAX_NORM_TENSOR = tl.constexpr(11)  # where 0, MAX_NORM counts
MAX_NORM = tl.constexpr(12)  # a number
INV_SCALE = tl.constexpr(13)  # float32: what gradients are multiplied by
IS_FLOAT64 = tl.constexpr(14)  # also set for a scale by a number: its product is float64
ERROR_IF_NONFINITE = tl.constexpr(15)  # leave the gradients alone when total_norm is not finite
COEFS = tl.constexpr(16)  # one for each tensor, as TOTAL_NORM
VALUE = tl.constexpr(17)  # a number: the coefficient of a scale, the limit of a clamp
FIELDS = tl.constexpr(18)

# A dtype's index here is its code, as in csrc/tensor_list.h, and its bit in a mix.
DTYPES = (tl.float32, tl.float64, tl.bfloat16, tl.float16)
CODES = tl.constexpr(len(DTYPES))
CODE_BITS = tl.constexpr(2)
SIZES = tl.constexpr(sum(t.primitive_bitwidth // 8 << 4 * code for code, t in enumerate(DTYPES)))

SLOTS = tl.constexpr(8)  # in a group
VECTOR_BYTES = tl.constexpr(16)
SMALL_BYTES = tl.constexpr(4096)  # torch_list.py says why it is not kSmallBytes


@triton.constexpr_function
def type_of(code):
    """Return the dtype of a code."""
    return DTYPES[code]


@triton.constexpr_function
def bytes_of(dtype):
    """Return the size of an element."""
    return dtype.primitive_bitwidth // 8


@triton.jit
def field(call_ptr, INDEX: tl.constexpr):
    """Read a field."""
    return tl.load(call_ptr + INDEX)


@triton.jit
def number(call_ptr, INDEX: tl.constexpr):
    """Read a field that holds a float64."""
    return tl.load(call_ptr + INDEX).to(tl.float64, bitcast=True)


@triton.jit
def float64_at(address):
    """Make a pointer of an address."""
    return address.to(tl.pointer_type(tl.float64))


@triton.jit
def float32_at(address):
    """Make a pointer of an address."""
    return address.to(tl.pointer_type(tl.float32))


@triton.jit
def inv_scale_in(call_ptr, T: tl.constexpr):
    """Return inv_scale, 1 if there is none."""
    inv_scale = tl.full([], 1.0, T)
    inv_scale_address = field(call_ptr, INV_SCALE)
    if inv_scale_address != 0:
        inv_scale = tl.load(float32_at(inv_scale_address)).to(T)
    return inv_scale


@triton.jit
def is_stopped(call_ptr):
    """Return whether found_inf is set, by this call or before it: nothing is written then."""
    found_inf = tl.full([], 0.0, tl.float32)
    found_inf_address = field(call_ptr, FOUND_INF)
    if found_inf_address != 0:
        found_inf = tl.load(float32_at(found_inf_address))
    return found_inf != 0.0


@triton.jit
def addresses(call_ptr):
    """Return where the tensors' addresses begin."""
    return call_ptr + FIELDS


@triton.jit
def packed_counts(call_ptr, tensors):
    """Return where the counts with their dtypes begin."""
    return call_ptr + FIELDS + tensors


@triton.jit
def first_slots(call_ptr, tensors):
    """Return where the first slots begin."""
    return call_ptr + FIELDS + 2 * tensors


@triton.jit
def targets(call_ptr, tensors):
    """Return where the targets' addresses begin."""
    return call_ptr + FIELDS + 3 * tensors


@triton.jit
def code_of(packed):
    """Return the dtype's code."""
    return packed & (CODES - 1)


@triton.jit
def count_of(packed):
    """Return the count of elements."""
    return packed >> CODE_BITS


@triton.jit
def size_of(packed):
    """Return the bytes of an element."""
    return (SIZES >> (4 * code_of(packed))) & 15


@triton.jit
def is_small(packed):
    """Return whether a tensor takes a slot rather than chunks."""
    return count_of(packed) * size_of(packed) < SMALL_BYTES


@triton.jit
def head_of(address, count, size):
    """Return the elements before the first 16-byte boundary: they belong to the first chunk."""
    return tl.minimum((-address & (VECTOR_BYTES - 1)) // size, count)


@triton.jit
def chunks_of(address, packed, chunk_size):
    """Return the chunks of a tensor that is not small."""
    count = count_of(packed)
    aligned = count - head_of(address, count, size_of(packed))
    return (aligned + chunk_size - 1) // chunk_size


@triton.jit
def begin_of(address, packed, chunk, chunk_size):
    """Return a chunk's first element within its tensor."""
    head = head_of(address, count_of(packed), size_of(packed))
    return tl.where(chunk == 0, 0, head + chunk * chunk_size)


@triton.jit
def end_of(address, packed, chunk, chunk_size):
    """Return the element after a chunk's last."""
    count = count_of(packed)
    head = head_of(address, count, size_of(packed))
    return tl.minimum(count, head + (chunk + 1) * chunk_size)


@triton.jit
def find_tensor(call_ptr, tensors, slot):
    """Return the last tensor whose first slot is at most ``slot``."""
    slots_ptr = first_slots(call_ptr, tensors)
    low = tensors * 0
    high = tensors - 1
    while low < high:
        middle = (low + high + 1) // 2
        is_before = tl.load(slots_ptr + middle) <= slot
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle - 1)
    return low


@triton.jit
def tensors_of(call_ptr, tensors, tensor, slot):
    """Return the tensors of a group of small ones, which begins at ``slot``, and a mask of them.

    The slots that follow belong to the tensors that follow, up to the next large one.
    """
    row = tl.arange(0, SLOTS)
    mine = tensor + row
    first_slot = tl.load(first_slots(call_ptr, tensors) + mine, mask=mine < tensors, other=-1)
    return mine, first_slot == slot + row


@triton.jit
def chunk_of(call_ptr, tensors, tensor, slot):
    """Return a tensor's address and packed count, and the byte offset and elements of a chunk."""
    chunk_size = field(call_ptr, CHUNK_SIZE)
    address = tl.load(addresses(call_ptr) + tensor)
    packed = tl.load(packed_counts(call_ptr, tensors) + tensor)
    chunk = (slot - tl.load(first_slots(call_ptr, tensors) + tensor)) // SLOTS
    begin = begin_of(address, packed, chunk, chunk_size)
    count = end_of(address, packed, chunk, chunk_size) - begin
    return address, packed, begin * size_of(packed), count
