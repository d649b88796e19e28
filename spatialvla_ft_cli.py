"""Start of the `spatialvla-ft` command, outside the package so that it can ask for a light import.

Commands import what they need; a simulation or a dataset writer must not find torch loaded.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("SPATIALVLA_FT_LIGHT", "1")
    # What libraries read once, when they are loaded: torch's profiler, which counts memory here,
    # says when it starts and that there is no GPU; bars of loading and fetching, which draw over
    # themselves, fill a file with pieces of lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from spatialvla_ft.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
