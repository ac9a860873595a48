"""The process of a local job, `python -m benchmarks.grid.begin LOCK -u -m MODULE ARGUMENTS`: it ends with its grid.

It runs the module once it watches the lock that the grid holds for as long as it lives. A killed grid cannot end its
jobs, and of a process that has another one in between (submitit's) the system does not tell that it died.
"""

import runpy
import sys
from pathlib import Path

from pretrain.locks import holder
from pretrain.workers import die_when


def main() -> None:
    """See above."""
    lock, *words = sys.argv[1:]
    # Asked, not waited for: the system could take that for a deadlock.
    die_when(lambda: holder(Path(lock)) is None)
    _, module, *arguments = words[words.index("-m") :]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
