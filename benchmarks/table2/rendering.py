"""Results -> table2.json, table2.md and table2_curves.png, from what is there so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from record import environment

from qoqmed.checkpoint.files import replace_text
from table2.curves import binned, draw
from table2.methods import GROUPS, WARM_START, Method
from table2.results import Result
from table2.summary import ORDER, RARE, Figure, by_method, figure, gain, of_domains, paired, vision

if TYPE_CHECKING:
    from table2.suite import Suite

Rows = Sequence[tuple[Method, Sequence[Result]]]
MECHANICS = (  # title, figure of a result, form
    ("s a step", "step_s", ".2f"),
    ("rewards, share of time", "reward_share", ".2%"),
    ("advantages, share of time", "advantage_share", ".2%"),
    ("elbow at its cap", "hit_cap", ".0%"),
    ("scale ratio, median", "scale_ratio_median", ".0f"),
    ("scale ratio, most", "scale_ratio_most", ".0f"),
    ("largest share of a question", "top_question_share", ".0%"),
    ("groups without variance", "frac_reward_zero_std", ".0%"),
    ("reward, first quarter", "reward_first", ".3f"),
    ("reward, last quarter", "reward_last", ".3f"),
    ("tokens a response", "mean_length", ".0f"),
)


def render(suite: Suite) -> None:
    """Write all three. Nothing without results."""
    found = by_method(suite.results())
    if not found:
        return
    suite.tables.mkdir(parents=True, exist_ok=True)
    name = "table2" if suite.form.name == "small" else f"table2_{suite.form.name}"
    replace_text(suite.tables / f"{name}.json", to_json(suite, found))
    replace_text(suite.tables / f"{name}.md", "\n".join(page(suite, found, f"{name}_curves.png")) + "\n")
    paper = {m.title: found[m.name] for m in suite.known.values() if m.group == "paper" and m.name in found}
    draw(paper, suite.tables / f"{name}_curves.png")


def page(suite: Suite, found: Mapping[str, Sequence[Result]], picture: str) -> Iterator[str]:
    """The lines of the Markdown page."""
    form, every = suite.form, [result for results in found.values() for result in results]
    seeds, commits = sorted({one.seed for one in every}), sorted({one.environment["commit"][:9] for one in every})
    yield f"# Training methods on nine drawn domains, {form.name} form{' (untested)' if form.untested else ''}"
    yield ""
    yield f"Seeds {', '.join(map(str, seeds))}; {form.budget} training samples a method; commits {', '.join(commits)}."
    yield "Made by `benchmarks/table2/run.py`; its `--help` says how. Figures are mean ± standard error over seeds,"
    yield "in the paper's metrics: accuracy counts true negatives, F1 is macro over labels. Greedy answers, fresh test"
    yield "cases of each seed. A difference is paired by seed: both methods began at one checkpoint. The figures of the"
    yield "paper are of another model on other data. Right: the share of cases whose labels are exactly the true ones."
    for line in failures(suite):
        yield f"\n**{line}**"
    for group, title in GROUPS.items():
        rows = [(m, found[m.name]) for m in suite.known.values() if m.group == group and m.name in found]
        if rows:
            start = [(WARM_START, found[WARM_START.name])] if WARM_START.name in found else []
            yield from ("", f"## {title}", "")
            yield from overview([*start, *rows], found)
            yield from ("", "F1 by domain:", "", *by_domain([*start, *rows], "f1"))
            yield from ("", "Accuracy by domain:", "", *by_domain([*start, *rows], "accuracy"))
            yield from ("", "What happened on the way (means over steps and seeds, unless said):", "", *mechanics(rows))
    if "drpo" in found and "grpo" in found:
        yield from ("", "## DRPO less GRPO by domain (the paper's Figure 2a)", "")
        yield from differences(found["drpo"], found["grpo"])
    yield from ("", "## Learning curves", "", f"![mean reward by domain against training samples]({picture})")


def failures(suite: Suite) -> list[str]:
    paths = sorted(suite.out.glob("seed-*/*.failed.txt"))
    return [f"Failed: {path.parent.name}, {path.name.partition('.')[0]}" for path in paths]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def told(value: Figure | None, form: str = ".3f") -> str:
    return "" if value is None else value.text(form)


def overview(rows: Rows, found: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    titles = ("method", "seeds", "steps", "samples", "Acc, 8 vision", "F1, 8 vision", "F1, 9 domains", "F1, rare two",
              "right, 9 domains", "gain of F1", "F1 against", "the paper's F1")  # fmt: skip
    measures = (vision("accuracy"), vision("f1"), of_domains("f1"), of_domains("f1", RARE), of_domains("exact_match"))
    cells = []
    for method, results in rows:
        compared = method is not WARM_START and method.name != method.against
        difference = paired(results, found.get(method.against, ()) if compared else (), vision("f1"))
        cells.append((
            *(method.title, str(len(results)), str(results[0].steps), str(results[0].samples)),
            *(told(figure(map(measure, results))) for measure in measures),
            "" if method is WARM_START else told(figure(map(gain("f1"), results)), "+.3f"),
            "" if difference is None else f"{method.against}: {told(difference, '+.3f')}",
            f"{method.paper[1]:.3f}" if method.paper else "",
        ))  # fmt: skip
    yield from table(titles, cells)


def by_domain(rows: Rows, metric: str) -> Iterator[str]:
    columns: list[tuple[str, Callable[[Result], float | None]]] = [
        *((name, of_domains(metric, [name])) for name in ORDER),
        ("8 vision", vision(metric)),
    ]
    cells = [(m.title, *(told(figure(map(measure, results))) for _, measure in columns)) for m, results in rows]
    yield from table(("method", *(name for name, _ in columns)), cells)


def mechanics(rows: Rows) -> Iterator[str]:
    known = [(title, key, form) for title, key, form in MECHANICS
             if any(key in result.figures for _, results in rows for result in results)]  # fmt: skip
    cells = []
    for method, results in rows:
        values = [(figure(result.figures.get(key) for result in results), form) for _, key, form in known]
        cells.append((method.title, *("" if value is None else format(value.mean, form) for value, form in values)))
    yield from table(("method", *(title for title, _, _ in known)), cells)


def differences(mine: Sequence[Result], others: Sequence[Result]) -> Iterator[str]:
    names = [name for name in ORDER if any(name in result.end for result in mine)]
    cells = [
        (name, *(told(paired(mine, others, of_domains(metric, [name])), "+.3f") for metric in ("accuracy", "f1")))
        for name in names
    ]
    yield from table(("domain", "accuracy", "F1"), cells)


def to_json(suite: Suite, found: Mapping[str, Sequence[Result]]) -> str:
    """A summary a method, and every result of every seed on a line of its own."""
    summary = {name: _summary(results) for name, results in found.items()}
    overrides = {name: suite.overrides(results[0].seed, suite.known[name]) for name, results in found.items()}
    head: dict[str, Any] = {
        "benchmark": "table2",
        "environment": environment(),  # of the rendering; each result has its own
        "settings": {"form": asdict(suite.form), "recipe": "recipes/suite.yaml", "overrides": overrides},
        "failed": failures(suite),
        "methods": summary,
    }
    lines = [json.dumps(_rounded(asdict(result))) for results in found.values() for result in results]
    text = json.dumps(_rounded(head), indent=1)
    return text[: text.rindex("\n}")] + ',\n "results": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    metrics = ("accuracy", "f1", "exact_match")
    figures = {f"vision/{metric}": figure(map(vision(metric), results)) for metric in metrics}
    figures |= {f"nine/{metric}": figure(map(of_domains(metric), results)) for metric in metrics}
    for name in ORDER:
        figures |= {f"{name}/{metric}": figure(map(of_domains(metric, [name]), results)) for metric in metrics}
    curves = {name: dict(zip(("samples", "reward"), binned(results, name), strict=True)) for name in ORDER}
    return {
        "figures": {name: asdict(value) for name, value in figures.items() if value is not None},
        "curves": {name: curve for name, curve in curves.items() if curve["samples"]},
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
