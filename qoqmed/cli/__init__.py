"""The command line. Every command is a few lines: it calls the program and shows what that returns.

Exit codes: 0 done, 1 the work failed (with its traceback), 2 wrong input (one message, a traceback with --debug only),
130 interrupted. Floor 4 is imported inside the commands, so that help, `plugins` and shallow checks load no torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import qoqmed
from qoqmed import config, registry
from qoqmed.cli.data import data_app
from qoqmed.cli.rewards import reward_app, score
from qoqmed.cli.shown import say, show
from qoqmed.contracts import GROUPS
from qoqmed.errors import UserError

app = typer.Typer(
    name="qoqmed",
    help="Reinforcement-learning post-training for clinical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipe_app = typer.Typer(no_args_is_help=True, help="Check a recipe, or show it whole.")
app.add_typer(recipe_app, name="recipe")
convert_app = typer.Typer(no_args_is_help=True, help="Turn weights that others published into safetensors.")
app.add_typer(convert_app, name="convert")
app.add_typer(reward_app, name="reward")
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Overrides, as stages.0.optimizer.lr=1e-5.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Deep = Annotated[bool, typer.Option("--deep", help="Import the plugins that it names and bind their arguments.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. `--debug` counts wherever it stands."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers', too: our own progress is enough
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # before torch: threads that spin for long starve a shared CPU
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="qoqmed")
    except UserError as error:
        if debug:
            traceback.print_exc()
        _tell(error)
        raise SystemExit(2) from None


def _tell(error: UserError) -> None:
    """Once for all processes: each leaves it where its launcher looks, rank 0 says it unless that launcher is ours."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        told = {"message": str(error), "timestamp": int(time.time()), "problems": [asdict(p) for p in error.problems]}
        Path(file).write_text(json.dumps(told), encoding="utf-8")
    if os.environ.get("QOQMED_LAUNCHED"):
        return
    count = len(error.problems)
    if (rank := _rank()) == 0:
        say(f"{'error: ' if count == 1 else f'{count} errors:' + chr(10)}{error}")
    elif file is None:  # the others' may be of this process alone, which nobody else would tell
        say(f"rank {rank} stopped: {str(error).splitlines()[0]}")


def _rank() -> int:
    """Of this process in its run, by what torchrun or srun has told it."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qoqmed {qoqmed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of wrong input too.")] = False,
) -> None:
    """The options of every command; `main` itself reads --debug, wherever it stands."""


@app.command()
def fit(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN|auto", help="Continue a run; auto: the recipe's latest.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and build everything, train nothing.")] = False,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Run this stage only.")] = None,
    from_run: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start the stage from this run's weights.")
    ] = None,
) -> None:
    """Train a policy by a recipe."""
    from qoqmed.fit import fit as run
    from qoqmed.report.plan import Plan, plan_table

    try:
        made = run(
            recipe,
            overrides=overrides or (),
            resume=resume,
            dry_run=dry_run,
            stage=stage,
            from_run=from_run,
            launch=True,
        )
    except KeyboardInterrupt as stop:
        if _rank() == 0:
            say(str(stop) or "interrupted")
        raise typer.Exit(130) from None
    if isinstance(made, Plan):
        show(plan_table(made))


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL|RECIPE", help="What to evaluate.")],
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(metavar="valid|test", help="Default: test, where there is one.")] = None,
    predictions: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the predictions there.")] = None,
    as_json: Json = False,
) -> None:
    """Generate on a split, then compute the metrics."""
    from qoqmed.evaluate import evaluate as run
    from qoqmed.report.tables import metrics_table

    result = run(target, overrides=overrides or (), split=split, predictions=predictions)
    show(result if as_json else metrics_table(result))


@app.command(context_settings={"ignore_unknown_options": True})
def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|DIR [--MODALITY FILE ...] [QUESTION]",
            help="A run or a model folder; media as --image F, --volume F, --video F, or --ecg F and the like where "
            "the model has such an encoder, each any number of times, in the order of the prompt, with options of "
            "how to read it behind it, as --ecg.rate_hz 500; a question in quotes. Without a question that of --domain "
            "is asked.",
        ),
    ],
    domain: Annotated[str, typer.Option(metavar="NAME", help="The clinical domain.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(metavar="L", help="An allowable label; again for each. Asks for a diagnosis.")
    ] = None,
    overlay: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the boxes on the pictures.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Default: that of the run.")] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="0: the likeliest answer.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of answers that are sampled.")] = 0,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="The plugin of qoqmed.rollouts. Default: the run's, or torch.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The response as the model gave it, nothing else.")] = False,
    as_json: Json = False,
) -> None:
    """Ask about media on disk: reasoning, boxes and the answer."""
    from qoqmed.asking import split_words
    from qoqmed.predict import predict as run
    from qoqmed.report.answers import answer_json, answer_view

    target, question, media = split_words(words)
    made = run(
        target,
        question,
        media,
        domain=domain,
        labels=label or (),
        overlay=overlay,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        overrides=[f"rollout.name={engine}"] if engine else (),
    )
    if raw:
        typer.echo(made.rollout.text)
    else:
        show(answer_json(made) if as_json else answer_view(made))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; nothing is overwritten.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="float32|bfloat16|float16", help="Default: that of the run.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(metavar="best|last", help="Which weights of the run.")] = "best",
    as_json: Json = False,
) -> None:
    """Write a run's policy as a folder that transformers loads, with a model card; load it anew and compare."""
    from qoqmed.export import ExportError
    from qoqmed.export import export as write
    from qoqmed.report.exports import export_table

    try:
        made = write(run, out, dtype=dtype, checkpoint=checkpoint)
    except ExportError as failure:
        say(f"error: {failure}")
        raise typer.Exit(1) from None
    show(asdict(made) | {"folder": str(made.folder)} if as_json else export_table(made))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `qoqmed export` made.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.")] = 8000,
) -> None:
    """Serve an exported model by vLLM's OpenAI-compatible server. Other options go to `vllm serve`."""
    from qoqmed.serve import serve as run

    run(folder, host=host, port=port, arguments=context.args)


@app.command()
def metrics(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS.jsonl", help="One prediction a line.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="A plugin of qoqmed.metrics.")] = "clinical",
    as_json: Json = False,
) -> None:
    """Compute the metrics of saved predictions, offline."""
    from qoqmed.offline import metrics as run
    from qoqmed.report.tables import metrics_table

    result = run(predictions, metric=metric)
    show(result if as_json else metrics_table(result))


@app.command()
def advantage(
    rewards: Annotated[Path, typer.Argument(metavar="REWARDS.jsonl", help="One rollout a line.")],
    estimator: Annotated[str, typer.Option(metavar="NAME", help="A plugin of qoqmed.advantages.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="The estimator's, as max_clusters=3.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the explanation, too.")] = None,
    as_json: Json = False,
) -> None:
    """Replay an estimator on saved rewards and explain it."""
    from qoqmed.offline import estimate
    from qoqmed.report.advantage_view import advantage_view

    result = estimate(rewards, estimator, dict(config.parse(text) for text in arguments or ()), plot=plot)
    show(result if as_json else advantage_view(result))


app.command()(score)


@app.command()
def plugins(
    group: Annotated[str | None, typer.Argument(metavar="GROUP", help=f"One of {', '.join(GROUPS)}.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One plugin: imports and describes it.")] = None,
    as_json: Json = False,
) -> None:
    """List the installed plugins, or describe one."""
    from qoqmed.report.plugins import description_json, description_view, plugins_table

    if group is not None and name is not None:
        description = registry.describe(group, name)
        show(description_json(description) if as_json else description_view(description))
        return
    found = [info for one in ([group] if group else GROUPS) for info in registry.available(one)]
    show([asdict(info) for info in found] if as_json else plugins_table(found))
    for problem in registry.unreadable():
        say(f"warning: {problem}")


@recipe_app.command("check")
def check_recipe(recipe: RecipeArgument, overrides: Overrides = None, deep: Deep = False) -> None:
    """Report every problem of a recipe at once. Shallow: imports no plugin and no torch."""
    loaded = config.load(recipe, overrides or (), deep=deep)
    depth = "its plugins were imported and their arguments bound" if deep else "shallow: --deep binds the plugins too"
    typer.echo(f"{recipe}: no problem in {loaded.name} with {len(loaded.stages)} stages ({depth})")


@recipe_app.command("show")
def show_recipe(recipe: RecipeArgument, overrides: Overrides = None, deep: Deep = False) -> None:
    """Print a recipe whole: defaults filled in, `extends` and interpolation resolved, secrets blotted out."""
    typer.echo(config.to_yaml(config.load(recipe, overrides or (), deep=deep, files=False)), nl=False)


@convert_app.command("ecg-jepa")
def convert_ecg_jepa(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published pickle. No code of it is run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write; it must not exist.")],
) -> None:
    """Convert the published ECG-JEPA weights for the encoder ecg_jepa."""
    from qoqmed import convert

    made = convert.ecg_jepa(file, out)
    typer.echo(f"{made.path}: {made.tensors} tensors, {made.parameters:,} trainable parameters, epoch {made.epoch}")
    typer.echo(f"sha256 of {file}: {made.sha256}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell which parts of the environment work, and how to mend the others. Exits with 1 if a needed part is broken."""
    from qoqmed.doctor import examine
    from qoqmed.report.plugins import findings_table

    findings = examine()
    show([asdict(finding) for finding in findings] if as_json else findings_table(findings))
    if any(finding.needed and finding.status == "missing" for finding in findings):
        raise typer.Exit(1)
