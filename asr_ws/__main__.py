"""`python -m asr_ws` is `asr-ws`."""

from asr_ws.cli import main

if __name__ == "__main__":
    main(prog_name="asr-ws")
