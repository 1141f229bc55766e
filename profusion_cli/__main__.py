"""Entry point of `profusion` and `python -m profusion_cli`."""

import sys


def main() -> None:
    """Run the command line; an interrupt is quiet, also while modules are still being loaded."""
    try:
        from profusion_cli.app import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
