"""Entry point of `profusion` and `python -m profusion_cli`."""

from profusion_cli.interrupts import heed_signals


def main() -> None:
    """Run the command line; signals are heeded also while modules are still being loaded."""
    heed_signals(_program)


def _program() -> None:
    from profusion_cli.app import run

    run()


if __name__ == "__main__":
    main()
