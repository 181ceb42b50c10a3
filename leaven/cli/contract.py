"""What every command promises: wrong input ends with one message on stderr, exit code 2 and no traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any, cast

import typer
from typer.core import TyperGroup

from leaven.cli.overrides import is_validation_error, validation_message
from leaven.errors import ConfigError, LeavenError

INTERRUPTED = 130

# Newer releases of typer carry their own copy of click, so click's classes are found through typer's.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


class Group(TyperGroup):
    """Commands under one name; a wrong one is answered with those that exist."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names. Raises: ConfigError when there is none."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise ConfigError(_unknown(ctx.command_path, "command", args[0], self.commands))
        return super().resolve_command(ctx, args)


def run(app: typer.Typer, argv: list[str]) -> int:
    """Run a command line on an app and give the exit code; messages of the user's errors go to stderr."""
    command = typer.main.get_command(app)
    try:
        # What ends early, such as --help or Ctrl-C in some releases of typer, gives its exit code here.
        code = command.main(args=argv or ["--help"], prog_name=app.info.name, standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return _fail("interrupted", INTERRUPTED)
    except UsageError as error:
        return _fail(_usage_message(error))
    except LeavenError as error:
        return _fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}")
    except Exception as error:
        if not is_validation_error(error):
            raise
        return _fail(validation_message(error))
    if code == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 2) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    return code


def _unknown(where: str, what: str, given: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = f"there are {', '.join(names)}" if names else f"it takes no {what}s"
    return f"{where}: no {what} {given!r}; {listed}.{hint}"


def _usage_message(error: Any) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "leaven"
    option = getattr(error, "option_name", None)
    parameters = context.command.params if context is not None else []
    if option is not None and type(error).__name__ == "NoSuchOption":
        known = [name for one in parameters for name in one.opts if name.startswith("-")]
        return _unknown(where, "option", option, [*known, "--help"])
    commands = getattr(context.command, "commands", None) if context is not None else None
    message = error.format_message()
    if commands and message.lower().startswith("missing command"):
        return f"{where}: a command is missing; there are {', '.join(sorted(commands))}."
    return f"{where}: {message} `{where} --help` shows what it takes."
