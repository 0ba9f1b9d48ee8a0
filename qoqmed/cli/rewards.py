"""`qoqmed score` and `qoqmed reward ..`: rewards of saved and of adversarial responses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from qoqmed.cli.shown import say, show, show_lines

reward_app = typer.Typer(no_args_is_help=True, help="Try the rewards of a recipe.")
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Overrides, as rewards.iou.weight=0.1.")
]


def score(
    responses: Annotated[Path, typer.Argument(metavar="RESPONSES.jsonl", help="One response a line.")],
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="Its rewards, weights and domains.")] = None,
    overrides: Overrides = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="Again for each: of the recipe's rewards, or without a recipe a plugin of qoqmed.rewards with the "
            "weight 1. Default: all of the recipe's, or accuracy=0.6, iou=0.2 and format=0.2.",
        ),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="One response: what the parser saw, and why each reward.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output: an object a line.")] = False,
) -> None:
    """Compute the rewards of saved responses, offline, with reasons."""
    from qoqmed.report.score_view import explained, explanation, invalid, score_row, score_table
    from qoqmed.scoring import chosen, named, score_file

    found = score_file(responses, chosen(named(reward) if reward else None, recipe, overrides or ()), explain)
    if as_json:
        show_lines([score_row(one) if explain is None else explained(one) for one in found])
    elif explain is None:
        show(score_table(found))
    else:
        show(Group(*map(explanation, found)))
    for reason in invalid(found):
        say(f"warning: not scored: {reason}")


@reward_app.command("check")
def check_reward(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
    overrides: Overrides = None,
    cases: Annotated[int, typer.Option(metavar="N", min=1, help="Training cases to respond to.")] = 8,
    threshold: Annotated[float, typer.Option(metavar="X", help="Mean score that is too good.")] = 0.7,
    timeout_s: Annotated[
        float, typer.Option(metavar="S", help="Of one response, for rewards that have no time limit.")
    ] = 10.0,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Made-up cases, not those of the recipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Show what adversarial responses earn. Exits with 1 where one scores high, or breaks a reward."""
    from qoqmed.report.reward_check_view import reward_check_json, reward_check_view
    from qoqmed.reward_checking import check_rewards

    made = check_rewards(
        recipe, overrides or (), count=cases, threshold=threshold, timeout_s=timeout_s, synthetic=synthetic
    )
    show(reward_check_json(made) if as_json else reward_check_view(made))
    if not made.passed:
        raise typer.Exit(1)
