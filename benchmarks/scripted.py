"""``asr-ws serve`` with decodes that are scripted and take no time (`asr_ws.testing.recognizer`): no model is needed.

    python -m benchmarks.scripted [the options of asr-ws serve]

For `benchmarks.served`, which starts it as it starts the other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from asr_ws.cli.options import with_settings
from asr_ws.config import Loaded
from asr_ws.testing.recognizer import scripted_worker


@click.command()
@with_settings
def main(loaded: Loaded) -> None:
    """Run the server until SIGINT or SIGTERM."""
    from asr_ws.server.app import run

    with TemporaryDirectory() as folder:
        exit_code = run(loaded.settings, scripted_worker(Path(folder), multilingual=True))
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
