"""`torchcaps`, `python -m torchcaps`: the command line, or what to install for it."""

import sys

from torchcaps.extras import missing_extra

USER_ERROR = 2


def main() -> int:
    """Run the command line; returns its exit status, 2 where the packages that it takes are not installed."""
    try:
        from torchcaps.cli import main as run
    except ModuleNotFoundError as error:
        print(f"torchcaps: error: {missing_extra(error)}", file=sys.stderr)
        return USER_ERROR
    return run()


if __name__ == "__main__":
    sys.exit(main())
