"""The `bench` command. stdout carries the answer; progress, logs and errors go to stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 missing data or dependency, 130 interrupted (143 by SIGTERM,
129 by SIGHUP).
"""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Sequence

from benchmarks.interrupts import exit_code, stoppable
from benchmarks.options import parser
from pretrain.files import FREE_SPACE, Failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = parser().parse_args(arguments)
    # What the frameworks say of their own imports is not for our users.
    warnings.filterwarnings("ignore", module=r"(torch|mmcv|mmengine|mmseg|detectron2|fvcore)\b")
    try:
        with stoppable(), contextlib.redirect_stdout(sys.stderr):  # frameworks print; the answer alone is stdout's
            code, answer = options.command(options)
        if answer:
            print(answer.rstrip("\n"), flush=True)
        return int(code)
    except KeyboardInterrupt as error:
        return _say("interrupted; the same command goes on from the last checkpoint", exit_code(error))
    except Failed as error:
        return _say(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _say(f"{error.name}: not installed: run `make install`; `bench doctor` says what is missing", 3)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _say(f"{error.filename or 'the disk'}: disk full: {FREE_SPACE}", 1)
        raise


def _say(message: str, code: int) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return code
