"""`qoqmed data ..`: data files of published data sets, and checks of such files. Part of `cli`, by the same rules."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qoqmed import config

data_app = typer.Typer(no_args_is_help=True, help="Make data files of published data sets, and check such files.")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@data_app.command("build")
def build_data(
    spec: Annotated[str, typer.Argument(metavar="SPEC|NAME", help="A spec file (YAML), or a name of `data specs`.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The data set's folder, as it was published.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the data files.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="As valid=0.1 shuffle=true, or the spec's options.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make train, valid and test files of a published data set, with a question a case."""
    from qoqmed.cli import _show
    from qoqmed.preparing.build import build
    from qoqmed.preparing.view import built_json, built_view

    built = build(spec, source, out, dict(config.parse(text) for text in arguments or ()))
    _show(built_json(built) if as_json else built_view(built))


@data_app.command("specs")
def show_specs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One spec: its layout and options.")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets that `data build` knows."""
    from qoqmed.cli import _show
    from qoqmed.preparing.spec import load, shipped
    from qoqmed.preparing.view import specs_view

    found = [load(one) for one in ([name] if name else shipped())]
    _show([asdict(one) for one in found] if as_json else specs_view(found))
