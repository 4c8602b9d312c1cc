"""``python -m asr_ws.worker SERVER_PID MODEL ...``: the worker, from its first moment a worker.

What `asr_ws.worker.child` imports takes a fifth of a second, in which the server may be killed, or told to stop.
"""

import sys

from asr_ws.worker.system import become_child

if __name__ == "__main__":
    become_child(int(sys.argv.pop(1)))
    from asr_ws.worker.child import main

    main()
