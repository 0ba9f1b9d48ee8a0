"""`qoqmed data ..`: data files of published data sets, and checks of such files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qoqmed import config
from qoqmed.cli.shown import show

data_app = typer.Typer(no_args_is_help=True, help="Make data files of published data sets, and check such files.")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@data_app.command("build")
def build_data(
    spec: Annotated[str, typer.Argument(metavar="SPEC|NAME", help="A spec file (YAML), or a name of `data specs`.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The data set's folder, as it was published.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the data files.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="seed, valid and test (shares of the patients), split (published or patient), shuffle, phrasings, "
            "frames, limit; and the spec's own options (`data specs NAME`).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make train, valid and test files of a published data set, with a question a case."""
    from qoqmed.preparing.build import build
    from qoqmed.preparing.view import built_json, built_view

    built = build(spec, source, out, dict(config.parse(text) for text in arguments or ()))
    show(built_json(built) if as_json else built_view(built))


@data_app.command("specs")
def show_specs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One spec: its layout and options.")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets that `data build` knows."""
    from qoqmed.preparing.spec import load, shipped
    from qoqmed.preparing.view import specs_view

    found = [load(one) for one in ([name] if name else shipped())]
    show([asdict(one) for one in found] if as_json else specs_view(found))


@data_app.command("check")
def check_data(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file (JSON Lines).")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Of the plugin jsonl, as format=easyr1 or mapping.labels=label."),
    ] = None,
    split: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A file of another split; again for each.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="The field whose value is a row's split, in one file of several."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What media are relative to. Default: the file's folder.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Read the media and masks, too.")] = False,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that decode. Default: one a processor.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model's folder: count the tokens of the prompts.")
    ] = None,
    frames: Annotated[int, typer.Option(metavar="N", help="Of a volume or video, as data.frames.")] = 4,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Of a prompt; more is told.")] = 16_384,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a copy in which all that is safe is mended; check that.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find what is wrong with a data file, and what its splits share. Exits with 2 where there are errors."""
    from qoqmed.checking.check import check
    from qoqmed.checking.view import report_view

    report = check(
        file,
        split or (),
        dict(config.parse(text) for text in arguments or ()),
        root=root,
        by=by,
        decode=decode,
        workers=workers,
        model=model,
        frames=frames,
        max_tokens=max_tokens,
        fix=fix,
    )
    show(report.as_json() if as_json else report_view(report))
    if report.errors:
        raise typer.Exit(2)
