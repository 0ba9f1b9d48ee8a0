"""What a user sees of a run while it trains and when it ends: rich renderables, made from reports alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from qoqmed.types import DomainStep, Evaluation, StepReport


def step_line(report: StepReport, eta_s: float | None = None) -> Text:
    """One step in one line. Without rewards (supervised stages) the loss stands in their place."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{report.stage} {report.step}/{report.steps}", style="bold")
    for label, value in _facts(report.metrics):
        line.append(f"  {label} ", style="dim").append(value)
    if eta_s is not None:
        line.append("  ETA ", style="dim").append(str(timedelta(seconds=round(eta_s))))
    return line


def _facts(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for name in ("reward", "loss"):
        if name in metrics:
            yield name, f"{metrics[name]:.3f}"
            break
    for label, name in _OF_METHODS:
        if name in metrics:
            yield label, f"{metrics[name]:.3f}"
    if "kl" in metrics:
        yield "KL", f"{metrics['kl']:.2g}"
    if "clip_ratio/low" in metrics:
        yield "clip", f"{metrics['clip_ratio/low'] + metrics['clip_ratio/high']:.3f}"
    if "entropy" in metrics:
        yield "entropy", f"{metrics['entropy']:.3f}"
    if "completions/mean_length" in metrics:
        yield "length", f"{metrics['completions/mean_length']:.1f}"
    if "tokens_per_second" in metrics:
        yield "tokens/s", f"{metrics['tokens_per_second']:,.0f}"
    phases = [value for name, value in metrics.items() if name.startswith("time/") and name != "time/reward"]
    if phases:
        yield "s/step", f"{sum(phases):.2f}"


_OF_METHODS = (
    ("margin", "dpo/rewards/margins"),
    ("accuracy", "dpo/rewards/accuracies"),
    ("value loss", "value/loss"),
)


def domain_table(report: StepReport) -> Table:
    """A row per domain of one step. Columns that the estimator does not fill are left out."""
    table = Table(title=f"{report.stage}, step {report.step} of {report.steps}", title_justify="left")
    table.add_column("domain")
    columns = [column for column in _COLUMNS if any(_cell(stats, column) for stats in report.domains.values())]
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for domain, stats in report.domains.items():
        table.add_row(domain, *(_cell(stats, column) for column in columns))
    return table


_COLUMNS = (
    ("N", "n", "d"),
    ("mean reward", "mean_reward", ".3f"),
    ("T", "temperature", ".3g"),
    ("k", "clusters", "d"),
    ("share of |A|", "share", ".1%"),
)


def _cell(stats: DomainStep, column: tuple[str, str, str]) -> str:
    _, field, form = column
    value = getattr(stats, field)
    return "" if value is None else format(value, form)


def evaluation_line(evaluation: Evaluation, metric: str = "f1") -> Text:
    """One evaluation in one line: its overall figure, greedy and sampled."""
    line = Text(f"{evaluation.split}, {_moment(evaluation)}:", style="bold")
    for kind, results in (("greedy", evaluation.greedy), ("sampled", evaluation.sampled)):
        if results is not None and metric in results["overall"]:
            line.append(f"  {metric} ", style="dim").append(f"{results['overall'][metric]:.3f}")
            line.append(f" ({kind})", style="dim")
    return line.append(f"  {evaluation.cases} cases, {evaluation.seconds:.1f} s", style="dim")


def change_table(evaluations: Sequence[Evaluation], metric: str = "f1", note: str = "") -> Table | None:
    """Before and after: a row per domain and the overall one; a column per moment, in time order, and the last gain.

    Moments: the start and the ends of stages, on the test split, or on valid where there is no test. None without any.
    The gain is that of the last stage over the one before.
    """
    split = "test" if any(evaluation.split == "test" for evaluation in evaluations) else "valid"
    moments = {e.when: e for e in evaluations if e.split == split and not e.when.startswith("step ")}
    greedy = [(f"greedy\n{e.when}", e.greedy) for e in moments.values() if e.greedy is not None]
    sampled = [(f"sampled\n{e.when}", e.sampled) for e in moments.values() if e.sampled is not None]
    if not greedy and not sampled:
        return None
    table = Table(title=f"{metric} on {split}", title_justify="left", caption=note or None, caption_justify="left")
    table.add_column("domain")
    table.add_column("cases", justify="right")
    for series in (greedy, sampled):
        for title in [title for title, _ in series] + (["\ngain"] if len(series) > 1 else []):
            table.add_column(title, justify="right")
    last = (greedy or sampled)[-1][1]
    for domain in last["domains"]:
        table.add_row(
            domain, *_row(greedy, sampled, ("domains", domain), metric), end_section=domain == list(last["domains"])[-1]
        )
    table.add_row("overall", *_row(greedy, sampled, ("overall",), metric), style="bold")
    return table


Series = Sequence[tuple[str, Mapping[str, Any]]]


def _row(greedy: Series, sampled: Series, place: tuple[str, ...], metric: str) -> Iterator[str | Text]:
    """Cases, then each series with its last gain."""
    support = _figure((greedy or sampled)[-1][1], place, "support")
    yield "" if support is None else f"{support:.0f}"
    for series in (greedy, sampled):
        values = [_figure(results, place, metric) for _, results in series]
        yield from ("" if value is None else f"{value:.3f}" for value in values)
        if len(values) > 1:
            before, after = values[-2:]
            yield "" if before is None or after is None else _change(after - before)


def _figure(results: Mapping[str, Any], place: tuple[str, ...], metric: str) -> float | None:
    for key in place:
        results = results.get(key, {})
    return results.get(metric)


def _change(value: float) -> Text:
    return Text(f"{value:+.3f}", style="green" if value > 0 else "red" if value < 0 else "")


def _moment(evaluation: Evaluation) -> str:
    when = evaluation.when
    return when if when == "start" or when.startswith("step ") else f"after {when}"
