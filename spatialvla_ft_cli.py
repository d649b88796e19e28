"""Start of the `spatialvla-ft` command, outside the package so that it can ask for a light import.

Commands import what they need; a simulation or a dataset writer must not find torch loaded.
"""

import os


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("SPATIALVLA_FT_LIGHT", "1")
    from spatialvla_ft.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
