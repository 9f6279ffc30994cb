"""The command line `qwen3omni`. This file maps what a verb raises to one line on stderr and an exit status."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from qwen3omni_wgpu.errors import OmniError

_VERBS = ("generate", "chat", "say", "transcribe", "quantize", "inspect", "pull", "bench", "perplexity", "doctor")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: run and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; its exit status: 0 success, 1 internal error, 2 bad usage or input, 130 on Ctrl-C."""
    from typer import Abort, TyperException

    from qwen3omni_wgpu.cli.verbs import app

    for name in _VERBS:
        import_module(f"qwen3omni_wgpu.cli.{name}")
    debug = "--debug" in argv
    try:
        status = app(args=list(argv) or ["--help"], prog_name="qwen3omni", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except TyperException as error:
        return _fail(f"{error.format_message()}; see `{_help_command(argv)}`", 2)
    except (OmniError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _reader_left()
        if debug:
            raise
        return _fail(str(error), 2)
    except (KeyboardInterrupt, Abort):
        return 130
    except SystemExit:
        # The one place where the option parser exits by itself is a closed pipe.
        return _reader_left()
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error, {type(error).__name__}: {error} (run again with --debug for the details)", 1)


def _fail(message: str, status: int) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"qwen3omni: error: {line}", file=sys.stderr)
    return status


def _reader_left() -> int:
    # `qwen3omni ... | head` is not an error; without this, Python complains again while flushing at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _help_command(argv: Sequence[str]) -> str:
    verb = next((arg for arg in argv if arg in _VERBS), "")
    return f"qwen3omni {verb} --help".replace("  ", " ")
