"""The command line: ``fastclip doctor``, ``fastclip demo`` and ``fastclip run``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import fastclip

from .demo import DEFAULT_STEPS, DemoOptions, run_demo
from .doctor import run_doctor
from .run import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0 for success, 1 if a check failed, 2 if something needed is missing.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return run_doctor(as_json=options.json)
    if options.command == "demo":
        return run_demo(
            DemoOptions(
                steps=options.steps,
                seed=options.seed,
                device=options.device,
                threads=options.threads,
                chart=options.out,
                record=options.json,
            )
        )
    if options.command == "run":
        return run_script(options.target, options.arguments, is_module=options.m, also=options.also)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastclip", description="Gradient clipping for PyTorch: diagnosis and demonstration."
    )
    parser.add_argument("--version", action="version", version=f"fastclip {fastclip.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    doctor = commands.add_parser(
        "doctor", help="show what is installed and compare every backend with float64"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    demo = commands.add_parser(
        "demo", help="train a small language model without clipping, with torch's and with fastclip"
    )
    demo.add_argument("--steps", type=_positive, default=DEFAULT_STEPS, help="default %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of weights and batches; default 0")
    demo.add_argument("--device", help='"cpu" or "cuda"; default: cuda where there is one')
    demo.add_argument("--threads", type=_positive, help="CPU threads; default: torch's own choice")
    demo.add_argument(
        "--out", type=Path, default=Path("demo.png"), help="the chart; default %(default)s"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="write every step's numbers here")
    run = commands.add_parser(
        "run", help="run a script whose trainer calls torch's clipping functions with fastclip's"
    )
    run.add_argument("-m", action="store_true", help="target is a module, as for python -m")
    run.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that imported one of the functions by name; may be given several times",
    )
    run.add_argument("target", help="the script or, after -m, the module")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {number})")
    return number
