"""The `bench` command. stdout carries the answer; progress, logs and errors go to stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 missing data or dependency, 130 interrupted (143 by SIGTERM,
129 by SIGHUP).
"""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence

from benchmarks import streams
from benchmarks.failures import foreseen, one_line
from benchmarks.interrupts import exit_code, stoppable
from benchmarks.options import parser
from pretrain.files import Failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    streams.prepare()
    options = _options(arguments)
    # What the frameworks say of their own imports is not for our users.
    warnings.filterwarnings("ignore", module=r"(torch|mmcv|mmengine|mmseg|detectron2|fvcore)\b")
    try:
        with stoppable(), contextlib.redirect_stdout(sys.stderr):  # frameworks print; the answer alone is stdout's
            code, answer = options.command(options)
        if answer:
            streams.answer(answer.rstrip("\n"))
        return int(code)
    except KeyboardInterrupt as error:
        return _say("interrupted; the same command goes on from the last checkpoint", exit_code(error))
    except ModuleNotFoundError as error:
        return _say(f"{error.name}: not installed: run `make install`; `bench doctor` says what is missing", 3)
    except Exception as error:
        command = options.command.__name__.strip("_").replace("_", " ")
        failed = foreseen(error, command=command, runs=getattr(options, "runs", None))
        return _say(str(failed), failed.exit_code)
    finally:
        streams.close()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises SystemExit: 0 after --help, 1 when that could not be written, 2 for wrong ones."""
    try:
        return parser().parse_args(arguments)
    except Failed as error:
        raise SystemExit(_say(str(error), error.exit_code)) from error


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        print(f"bench: {one_line(message)}", file=sys.stderr)
    return code
