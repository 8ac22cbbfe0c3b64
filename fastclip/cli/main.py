"""The command line: ``fastclip doctor`` and ``fastclip demo``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import fastclip

from .demo import DEFAULT_STEPS, DemoOptions, run_demo
from .doctor import run_doctor


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
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {number})")
    return number
