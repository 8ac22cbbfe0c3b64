"""Passes every variant of the Triton kernels through Triton's front end; prints what it refuses.

This needs its own process, because Triton's functions do not compile in the interpreter's. Triton's
front end checks types, which the interpreter, as it runs Python, does not.
"""

import json
from collections.abc import Iterator, Mapping

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from fastclip.backends.triton.call import compile_options
from fastclip.backends.triton.device import kernels, reduce, table

TARGET = GPUTarget("cuda", 90, 32)
MIXES = (1, 2, 4, 8, 15)
KINDS = tuple(
    kind.value
    for kind in (
        reduce.SUM_SQ,
        reduce.SUM_SQ_WIDE,
        reduce.ABS_SUM,
        reduce.ABS_MAX,
        reduce.POWER_SUM,
    )
)


def variants() -> Iterator[tuple[triton.JITFunction, dict[str, int]]]:
    """Yield each kernel with its constants."""
    yield table.write_words_kernel, {}
    for kind in KINDS:
        yield kernels.finish_kernel, {"KIND": kind}
    for mix in MIXES:
        for kernel in (kernels.scale_kernel, kernels.scale_into_kernel):
            yield kernel, {"MIX": mix}
        for scales in (0, 1):
            yield kernels.clamp_kernel, {"MIX": mix, "SCALES": scales}
        for kind in KINDS:
            yield kernels.finish_and_scale_kernel, {"MIX": mix, "KIND": kind}
            for finds_inf in (0, 1):
                for kernel in (kernels.clip_kernel, kernels.reduce_kernel):
                    yield kernel, {"MIX": mix, "KIND": kind, "FINDS_INF": finds_inf}


def check(kernel: triton.JITFunction, constants: Mapping[str, int]) -> None:
    """Raise what Triton's front end raises."""
    signature = dict.fromkeys(kernel.arg_names, "i64") | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    backend = make_backend(TARGET)
    options = backend.parse_options(dict(compile_options(32, True, False)))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(kernel, signature, constexprs=places)
    functions = backend.get_codegen_implementation(options)  # pyright: ignore[reportAttributeAccessIssue]
    source.make_ir(TARGET, options, functions, backend.get_module_map(), context)


def main() -> None:
    """Print the number of variants and every refusal."""
    refused, count = dict[str, str](), 0
    for kernel, constants in variants():
        count += 1
        try:
            check(kernel, constants)
        except triton.CompilationError as error:
            refused[f"{kernel.__name__} {constants}"] = str(error)
    print(json.dumps({"variants": count, "refused": refused}))


if __name__ == "__main__":
    main()
