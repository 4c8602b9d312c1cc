"""``python -m asr_ws.media SERVER_PID ...``: the media process, which has its manners before it imports the rest."""

import sys

from asr_ws.worker.system import become_child

# Behind the worker, whose decodes someone waits for: for the CPU, and before it where memory runs out.
NICE = 10  # of 19
OOM_SCORE_ADJ = 1000  # of 1000

if __name__ == "__main__":
    become_child(int(sys.argv.pop(1)), nice=NICE, oom_score_adj=OOM_SCORE_ADJ)
    from asr_ws.media.child import main

    main()
