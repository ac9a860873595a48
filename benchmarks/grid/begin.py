"""The process of a local job, `python -m benchmarks.grid.begin LOCK -u -m MODULE ARGUMENTS`: it ends with its grid.

It runs the module once it watches the lock that the grid holds for as long as it lives. A killed grid cannot end its
jobs, and of a process that has another one in between (submitit's) the system does not tell that it died.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from pretrain.locks import holder

LOOK_SECONDS = 0.5


def main() -> None:
    """See above."""
    lock, *words = sys.argv[1:]
    threading.Thread(target=_watch, args=(Path(lock),), daemon=True).start()
    _, module, *arguments = words[words.index("-m") :]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(lock: Path) -> None:
    """Until nobody holds the lock. Asked, not waited for: the system could take that for a deadlock."""
    while holder(lock) is not None:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
