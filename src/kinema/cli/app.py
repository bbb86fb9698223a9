"""The `kinema` command and its verbs. Each verb imports what it needs when it runs."""

from __future__ import annotations

import re
import signal
import sys
import threading
from typing import Annotated, Any

import typer

from .. import __version__
from . import demo, doctor, generate, info, inspect_file, models, plan, train_toy
from .exits import EXITS, show_tracebacks

EPILOG = "Exit codes: " + ", ".join(f"{row.code} {re.split('[:;(]', row.meaning)[0].strip()}" for row in EXITS) + "."

app = typer.Typer(
    name="kinema",
    help="Text, pictures and clips become video.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts faster and pipes well
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def prepare_process() -> None:
    """Make a request to terminate unwind the stack like Ctrl-C does, so that no temporary file stays."""

    def terminate(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():  # nowhere else are handlers allowed
        signal.signal(signal.SIGTERM, terminate)


def _version(asked: bool) -> None:
    if asked:
        print(f"kinema {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="KINEMA_DEBUG", help="Show where an error comes from.")
    ] = False,
) -> None:
    show_tracebacks(debug)


app.command("generate")(generate.generate)
app.command("plan")(plan.plan)
app.command("demo", cls=demo.Command)(demo.demo)
app.command("models")(models.models)
app.command("inspect")(inspect_file.inspect)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
app.command("train-toy")(train_toy.train_toy)
