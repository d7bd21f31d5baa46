"""A process that imports torch once and forks a worker for each request line: thousands of real processes to kill.

Lines in: a worker's request, answered with {"pid"}; `reap`, answered with {"signal", "status"} when that child ended.
"""

from __future__ import annotations

import io
import json
import os
import sys

from winnow.train.device import prepare
from winnow.train.worker import Worker


def main() -> None:
    prepare(1)
    child = 0
    for line in sys.stdin:
        if line.strip() == "reap":
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            answer = {"signal": os.WTERMSIG(status) if killed else 0, "status": 0 if killed else os.WEXITSTATUS(status)}
        else:
            child = os.fork()
            if child == 0:
                with open(os.devnull, "wb") as nowhere:
                    Worker(io.BytesIO(line.encode()), nowhere).serve()
                os._exit(0)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
