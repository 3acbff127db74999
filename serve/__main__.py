"""`python -m serve`: the server, or with `score` a folder's predictions; see serve/command.py."""

import sys
from collections.abc import Sequence

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        from serve.command import run  # here, not above: Ctrl-C may come while it is imported

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("python -m serve: stopped before it had begun", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
