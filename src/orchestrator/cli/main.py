"""Runs a command and turns how it ended into an exit code and, when it went wrong, a sentence."""

import os
import sys
from importlib import import_module
from typing import Any, Final

import click

import orchestrator
from orchestrator.cli.failure import CommandFailed, Exit

COMMANDS: Final = {
    "serve": "serving:serve",
    "dev": "trying:dev",
    "demo": "trying:demo",
    "ingress": "ingress:ingress",
    "invoke": "runs:invoke",
    "chat": "chat:chat",
    "tail": "tail:tail",
    "replay": "runs:replay",
    "runs": "runs:runs",
    "sessions": "sessions:sessions",
    "agents": "agents:agents",
    "probe": "probing:probe",
    "keys": "keys:keys",
    "audit": "audit:audit",
    "secrets": "secrets:secrets",
    "backup": "saving:backup",
    "copy": "copy:copy",
    "migrate": "migrate:migrate",
    "doctor": "doctor:doctor",
}
"""Every command and where it is written; a command is imported when it is called."""

EPILOG: Final = (
    "Without a command the server is started. Exit codes: 0 done, 1 the run failed, 2 wrong usage "
    "or settings, 3 no server, 4 not found, 5 cancelled, 6 refused, 130 interrupted."
)


class Commands(click.Group):
    """The commands of COMMANDS; click wants a subclass for commands that load late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"orchestrator.cli.{module}"), name)
        return command


program: Final = Commands(
    "orchestrator",
    help="One plane in front of your agents: invoke, stream, record, replay.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, help="Say which.",
            callback=lambda ctx, _, wanted: _version(ctx) if wanted else None,
        )
    ],
)  # fmt: skip


def _version(ctx: click.Context) -> None:
    click.echo(f"orchestrator {orchestrator.__version__}")
    ctx.exit()


def main() -> None:
    """Run the command line; what is not a command of its own is meant for `serve`."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command line and return its exit code."""
    asked = {"-h", "--help", "--version"}
    if not args or (args[0].startswith("-") and args[0] not in asked):
        args = ["serve", *args]
    try:
        _check_text(args)
        result: Any = program.main(args, prog_name="orchestrator", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as problem:
        problem.show()
        return Exit.USAGE
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _leave_stdout()
        return Exit.OK
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        return _told(explained)
    return int(result) if isinstance(result, int) else Exit.OK


def _told(problem: CommandFailed) -> Exit:
    click.echo(f"orchestrator: {problem.message}", err=True)
    if problem.hint:
        click.echo(f"  {problem.hint}", err=True)
    return problem.code


def _explained(error: Exception) -> CommandFailed | None:
    """Return the sentence for an error that is not a fault of ours."""
    from orchestrator.core.errors import OrchestratorError, PortBusy

    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return _explained(error.exceptions[0])
    if isinstance(error, CommandFailed):
        return error
    if isinstance(error, PortBusy):
        from orchestrator.cli.ports import explain

        return explain(error)
    if isinstance(error, OrchestratorError):
        return CommandFailed(error.message)
    return _unwritable() if isinstance(error, OSError) else None


def _unwritable() -> CommandFailed | None:
    """Return the sentence for a standard output that takes nothing, None where it does."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _leave_stdout()
        return CommandFailed(f"the output cannot be written: {error.strerror}", Exit.FAILED)
    return None


def _leave_stdout() -> None:
    """Let what is still to be flushed go nowhere: its reader has left, or takes nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _check_text(words: list[str]) -> None:
    """Raise CommandFailed for a word that is no text; it comes as unpaired surrogates."""
    try:
        " ".join(words).encode()
    except UnicodeEncodeError:
        raise CommandFailed("a word of the command is not UTF-8 text") from None
