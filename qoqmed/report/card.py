"""The model card of an exported run: a README.md that says where its numbers come from, and what nobody has tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from qoqmed.report.record import Origin, Record
from qoqmed.report.tables import SHOWN, number
from qoqmed.types import Evaluation

NOT_STATED = "not stated in the data"
LOADING = """import qoqmed.hf  # makes transformers know this kind of model; no code of this folder is run
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # where this file lies
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)

content = [{"type": "text", "text": "Which rhythm does an ECG without P waves suggest?"}]
batch = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
tokens = model.generate(**batch, do_sample=False, max_new_tokens=64)[0, batch["input_ids"].shape[1] :]
print(processor.tokenizer.decode(tokens))"""


def card(record: Record) -> str:
    """Markdown with YAML front matter, as model hubs read it."""
    parts = [
        f"---\n{_front(record)}---",
        f"# {record.run}",
        _intended(),
        "## Model\n\n" + _model(record),
        "## Loading\n\n" + _loading(record),
        "## Training\n\n" + _training(record),
        "## Data\n\n" + _data(record),
        "## Evaluation\n\n" + "\n\n".join(_evaluations(record)),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(record)),
        "## Environment\n\n" + _environment(record),
    ]
    return "\n\n".join(parts) + "\n"


def _front(record: Record) -> str:
    estimators = [stage.advantage for stage in record.stages if stage.advantage]
    tags = ["qoqmed", "medical", record.model.model_type, *dict.fromkeys(estimators), *record.model.encoders]
    front = {
        "license": "other",
        "license_name": "those-of-the-base-model-and-the-data",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": list(dict.fromkeys(tags)),
    }
    return OmegaConf.to_yaml(OmegaConf.create(front))


def _intended() -> str:
    return (
        "**Research use only. This is not a medical device**, and its answers are not fit for the care of patients.\n"
        "It answers questions about clinical images and signals, for research on such models by people who can check "
        "its answers.\nWhat the licences of the base model and of each data set below forbid stays forbidden."
    )


def _model(record: Record) -> str:
    model = record.model
    chosen = f"the best by {record.best}" if record.best else "not chosen by a metric"
    base = f"{model.base} (its licence: unknown to this run)" if model.base else "none: random weights"
    rows = [
        ("base model", base),
        ("architecture", model.model_type),
        ("parameters", f"{model.parameters:,}"),
        ("stored as", model.dtype),
        ("weights of", f"run {record.run}, {record.checkpoint}: {chosen}"),
        ("LoRA", "none" if model.lora is None else f"merged: {_pairs(model.lora)}"),
        ("pictures of a volume or video", number(record.data["frames"])),
        ("pixels of a picture", f"{record.data['min_pixels']:,} to {record.data['max_pixels']:,}"),
        ("numbers of a box", model.box_frame),
    ]
    own = _table(("", ""), rows)
    if not model.encoders:
        return f"{own}\n\nNo encoders of further modalities."
    encoders = [
        (
            modality,
            spec["name"],
            f"{spec['distribution']} {spec['version']}",
            f"{model.encoder_parameters[modality]:,}",
            _pairs(spec["arguments"]),
        )
        for modality, spec in model.encoders.items()
    ]
    heads = ("modality", "encoder", "package", "parameters", "arguments")
    return f"{own}\n\nEncoders of further modalities; their packages must be installed:\n\n{_table(heads, encoders)}"


def _loading(record: Record) -> str:
    needs = dict.fromkeys(["qoqmed", *(spec["distribution"] for spec in record.model.encoders.values())])
    items = {"image": '{"type": "image", "image": "scan.png"}'} | {
        modality: f'{{"type": "{modality}", "{modality}": "FILE"}}' for modality in record.model.encoders
    }
    media = "\n".join(f"- `{item}`" for item in items.values())
    return (
        f"It needs these packages: {', '.join(needs)}.\n\n```python\n{LOADING}\n```\n\n"
        f"Media are items of the content, before or between texts:\n\n{media}"
    )


def _training(record: Record) -> str:
    rows = [
        (
            stage.name,
            stage.objective,
            stage.advantage or "-",
            ", ".join(stage.train),
            stage.domains if isinstance(stage.domains, str) else ", ".join(stage.domains),
            f"{stage.lr:g}",
            "unknown" if stage.steps is None else str(stage.steps),
        )
        for stage in record.stages
    ]
    heads = ("stage", "objective", "estimator", "trained parts", "domains", "learning rate", "steps")
    rewards = ", ".join(_weight(record, name) for name in record.rewards) or "none"
    told = f"- Weights of the rewards: {rewards}.\n- Sampling: {_pairs(record.sampling)}.\n- Seed: {record.seed}."
    return f"{_table(heads, rows)}\n\n{told}"


def _weight(record: Record, name: str) -> str:
    """A reward's weight, those in single domains, and what it shares it with: `iou 0.2 (ecg 0)`."""
    own, shares = record.routing.domains.get(name, {}), record.routing.shares
    others = [other for other in record.rewards if other != name and shares.get(other) == shares.get(name, "")]
    told = [", ".join(f"{domain} {weight:g}" for domain, weight in own.items())] if own else []
    told += [f"shared with {' and '.join(others)}"] if others else []
    return f"{name} {record.rewards[name]:g}" + (f" ({'; '.join(told)})" if told else "")


def _data(record: Record) -> str:
    rows = [
        (one.split, one.domain, one.dataset, f"{one.cases:,}", _licences(one), "yes" if one.synthetic else "")
        for one in record.origins
    ]
    parts = [_table(("split", "domain", "data set", "cases", "licence", "synthetic"), rows)] if rows else []
    parts += [f"- Unknown: the data could not be read at the export ({one})." for one in record.unread]
    if record.data["modalities"] != "all":
        parts.append(f"Media of other modalities than {', '.join(record.data['modalities'])} were left out.")
    return "\n\n".join(parts) or "Unknown."


def _licences(origin: Origin) -> str:
    if origin.synthetic:
        return "none: made by a program"
    told = [f"{name or NOT_STATED} ({cases:,})" for name, cases in sorted(origin.licences.items())]
    return ", ".join(told) if len(told) > 1 else next(iter(origin.licences)) or NOT_STATED


def _evaluations(record: Record) -> Iterator[str]:
    if not record.evaluations:
        yield "None: the run holds no evaluation."
    for one in record.evaluations:
        own = one.global_step == record.step
        note = "of these weights" if own else f"**not of these weights**, which are of step {record.step}"
        for kind, result in (("greedy", one.greedy), ("sampled at temperature 1", one.sampled)):
            if result:
                yield (
                    f"Split `{one.split}`, {one.cases} cases, {kind}, at step {one.global_step} ({note}):\n\n"
                    + _metrics(result)
                )


def _metrics(result: Mapping[str, Any]) -> str:
    rows = {"overall": result.get("overall", {}), **result.get("domains", {})}
    found = list(dict.fromkeys(name for values in rows.values() for name in values))
    columns = [name for name in SHOWN if name in found] or found
    return _table(
        ("", *columns), [(name, *(number(of.get(column)) for column in columns)) for name, of in rows.items()]
    )


def _limits(record: Record) -> Iterator[str]:
    asked = [stage.domains for stage in record.stages]
    named = {name for domains in asked if not isinstance(domains, str) for name in domains}
    seen = {one.domain for one in record.origins if one.split == "train"}
    trained = seen if "all" in asked else seen & named
    tested = {domain for one in record.evaluations for domain in (one.greedy or one.sampled or {}).get("domains", {})}
    train = [one for one in record.origins if one.split == "train"]
    synthetic = sum(one.cases for one in train if one.synthetic)
    total = sum(one.cases for one in train)
    if synthetic:
        yield (
            f"{synthetic:,} of the {total:,} training cases are synthetic, drawn by a program: figures on such cases "
            "say nothing about patients."
        )
    untrained = [domain for domain in record.domains if domain not in trained]
    if untrained and not record.unread:
        yield f"No training cases: {', '.join(untrained)}."
    untested = sorted((trained | set(record.domains)) - tested)
    if untested:
        yield f"No evaluation: {', '.join(untested)}."
    yield from (_size(one) for one in record.evaluations)
    if not any(one.split == "test" for one in record.evaluations):
        yield "No figures of a test split: validation cases may have chosen the weights."
    yield "Not tested: other scanners, hospitals, languages and populations than those of the data above."
    yield "No clinician's judgement is in these figures. Reasoning and boxes may be wrong where labels are right."


def _size(evaluation: Evaluation) -> str:
    domains = (evaluation.greedy or evaluation.sampled or {}).get("domains", {})
    counts = {name: int(of["support"]) for name, of in domains.items() if "support" in of}
    if not counts:
        return f"`{evaluation.split}`: the number of labelled cases of each domain is unknown."
    fewest = min(counts, key=lambda name: counts[name])
    return (
        f"`{evaluation.split}` is of {evaluation.cases} cases; the fewest in a domain are {counts[fewest]} ({fewest})."
    )


def _environment(record: Record) -> str:
    rows = []
    for name, of in (("training", record.environment), ("export", record.exported)):
        code = of.get("code") or {}
        commit = f"{code['commit']}{' with changes' if code.get('dirty') else ''}" if code else "unknown"
        rows.append(
            (name, of.get("time", "unknown"), of.get("python", "unknown"), commit, _pairs(of.get("packages", {})))
        )
    heads = ("", "time", "Python", "commit of qoqmed", "packages")
    return f"{_table(heads, rows)}\n\nAll of it, for programs: `qoqmed.json`."


def _pairs(values: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
