"""The process `segmmreg` (also `python -m SegGuidedMMRegLib`): to be interrupted from its first moment on."""

from __future__ import annotations

import sys

from SegGuidedMMRegLib.interruption import end, interruption, listen


def main() -> None:
    """Run the command line and leave with its exit code."""
    listen()
    try:
        from SegGuidedMMRegLib.cli import main as command_line

        command_line()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("SegGuidedMMRegLib"):
            raise
        from SegGuidedMMRegLib.bare import answer

        code = answer(sys.argv[1:], missing)
    except (KeyboardInterrupt, Exception):  # while the command line itself was loaded
        stopped = interruption()
        if stopped is None:
            raise
        from SegGuidedMMRegLib.failures import failure_of

        print(failure := failure_of(stopped), file=sys.stderr)
        code = failure.exit_code
    end(code)


if __name__ == "__main__":
    main()
