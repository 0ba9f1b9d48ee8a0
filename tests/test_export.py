"""A run as a folder for transformers: the same numbers in a clean process, a card that says what the run's files do."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from fake_distribution import install
from PIL import Image
from safetensors import safe_open

import qoqmed
from qoqmed import checkpoint
from qoqmed.config.schema import Node
from qoqmed.datasets.synthetic import Synthetic
from qoqmed.export import Exported, ExportError, questions
from qoqmed.fit import fit
from qoqmed.policy import reload
from qoqmed.registry import make

pytestmark = pytest.mark.usefixtures("tiny", "acme")

ENCODER = '''
import torch
from qoqmed.encoders.ecg_conv import EcgConv


class Pulse(EcgConv):
    """A third party's ECG encoder, with saved buffers: one float32 by its word, one of whatever is usual."""

    def __init__(self, num_tokens: int = 10):
        super().__init__(num_tokens=num_tokens)
        self.register_buffer("table", torch.tensor([0.1, 0.2], dtype=torch.float32))
        self.register_buffer("usual", torch.zeros(2))
'''
LICENCES = ("CC BY 4.0", "CC0", None)


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A third party's encoder, installed here, and found by processes that get `PYTHONPATH`."""
    site = tmp_path_factory.mktemp("acme")
    install(site, "acme-pulse", {"encoders": {"pulse": "acme_pulse:Pulse"}}, ENCODER, version="2.1")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", str(site))
        yield site


@pytest.fixture(scope="module")
def run(tiny: None, acme: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on synthetic cases and on a file whose rows state licences, with a third party's encoder."""
    folder = tmp_path_factory.mktemp("run")
    rows = []
    for number, licence in enumerate(LICENCES):
        Image.fromarray(np.full((40, 40, 3), 80 * number, np.uint8)).save(folder / f"{number}.png")
        row = {"id": str(number), "domain": "fundus", "dataset": "eyes", "media": {"image": f"{number}.png"}}
        stated = {"attributes": {"licence": licence}} if licence else {}
        rows.append(row | {"label_space": ["mild", "severe"], "labels": ["mild"]} | stated)
    (folder / "eyes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tiny_run.RECIPE["data"] | {"root": str(folder)}
    train = [*data["train"], {"name": "jsonl", "path": "eyes.jsonl", "weight": 2.0}]
    here = tiny_run.place(folder, data=data | {"train": train}, encoders={"ecg": {"name": "pulse", "num_tokens": 4}})
    routed = ["rewards.format.domains={ecg: 0.25, ct: 0}", "rewards.format.share=rest", "rewards.vowels.share=rest"]
    return fit(here.recipe, ["rollout.temperature=0.8", *routed]).folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return qoqmed.export(run, tmp_path_factory.mktemp("export") / "model")


def loaded(folder: Path) -> tuple[Any, Any]:
    """As anybody loads it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import qoqmed.hf  # noqa: F401

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def chosen(run: Path) -> Path:
    found = checkpoint.best(run / "checkpoints")
    assert found is not None
    return found


# ---- the same model


def test_a_clean_process_computes_the_same(exported: Exported) -> None:
    assert exported.differences.keys() == {"text", "image", "ecg", "together"} and exported.left_out == ()
    assert exported.largest <= 1e-6 and exported.merging is None and exported.dtype == "float32"


def test_the_folder_is_the_runs_policy(run: Path, exported: Exported) -> None:
    """Next-token logits of the run's own packs against the loaded folder's forward: two implementations."""
    actor, _ = qoqmed.load(run)
    actor.handle.policy.eval()
    data = Synthetic(size=4, seed=9, domains=["fundus", "ecg"], balanced=True)
    admitted = actor.admit([(data, index) for index in range(4)])
    own = actor.handle.logits(actor.handle.prefill(admitted.prompts).hidden)
    model, processor = loaded(exported.folder)
    for case, prompt, expected in zip(admitted.cases, admitted.prompts, own, strict=True):
        (medium,) = case.media
        content = [{"type": medium.modality, medium.modality: medium.array}]
        content.append({"type": "text", "text": actor.prompter.task(case).prompt(case)})
        batch = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert torch.equal(batch["input_ids"][0], prompt.token_ids)
        with torch.no_grad():
            found = model(**batch).logits[0, -1]
        allowed = expected > -torch.inf
        torch.testing.assert_close(found[allowed], expected[allowed], rtol=0, atol=1e-5)


def test_generation_is_as_in_training(run: Path, exported: Exported) -> None:
    found = read(exported.folder / "generation_config.json")
    assert (found["do_sample"], found["temperature"], found["top_k"], found["max_new_tokens"]) == (True, 0.8, 0, 8)
    actor, _ = qoqmed.load(run)
    assert set(found["suppress_tokens"]) == actor.handle.banned_token_ids
    assert {found["eos_token_id"]} == actor.handle.stop_token_ids


def test_greedy_answers_are_those_of_predict(run: Path, exported: Exported) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    made = [qoqmed.predict(target, "What?", [("image", picture)]) for target in (run, exported.folder)]
    assert made[0].rollout.token_ids == made[1].rollout.token_ids
    model, processor = loaded(exported.folder)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    batch = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    tokens = model.generate(**batch, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert tuple(tokens.tolist()) == made[0].rollout.token_ids


def test_a_folder_brings_its_own_settings(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    actor, recipe = qoqmed.load(exported.folder)
    data = recipe.data
    assert (data.frames, data.min_pixels, data.max_pixels, recipe.rollout.max_new_tokens) == (2, 784, 7056, 8)
    assert actor.prompter.processor.frames == 2 and actor.prompter.processor.pixel_bounds == (784, 7056)
    valid = "data.valid=[{name: synthetic, size: 2, domains: [fundus]}]"
    assert tiny_run.command("eval", exported.folder, valid, "--json") == 0
    assert json.loads(capsys.readouterr().out)["overall"]["support"] == 2


def test_damaged_settings_are_told(exported: Exported, tmp_path: Path) -> None:
    for file in exported.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(qoqmed.errors.UserError, match=r"processor_config\.json: the file is no JSON"):
        qoqmed.load(tmp_path)


@pytest.mark.slow
def test_bfloat16_and_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    made = qoqmed.export(run, tmp_path / "half", dtype="bfloat16", checkpoint="last")
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and made.checkpoint == newest.name and made.largest <= 1e-6
    with safe_open(made.folder / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds.pop("encoders.ecg.table") == torch.float32  # as transformers loads it
    assert set(kinds.values()) == {torch.bfloat16}
    _, recipe = qoqmed.load(made.folder)
    assert recipe.model.dtype == "bfloat16"


@pytest.mark.slow
def test_adapters_are_merged(tiny: None, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = {"rank": 4, "parts": ["language_model"]}
    model = tiny_run.RECIPE["model"] | {"lora": lora}
    here = tiny_run.place(tmp_path, model=model, evaluation={"metrics": []})
    folder = fit(here.recipe, [tiny_run.SFT_ONLY, "data.valid=[]"]).folder
    made = qoqmed.export(folder, tmp_path / "model")
    assert made.merging is not None and 0 < made.merging < 1e-5 and made.largest <= 1e-6
    with safe_open(made.folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert "merged: rank 4" in (made.folder / "README.md").read_text()
    assert "None: the run holds no evaluation" in (made.folder / "README.md").read_text()


# ---- the card


def table(card: str, title: str) -> list[list[str]]:
    """Cells of all table rows under a heading."""
    part = card.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def card(exported: Exported) -> str:
    return (exported.folder / "README.md").read_text()


def test_the_front_matter_is_what_hubs_read(card: str) -> None:
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "other" and front["library_name"] == "transformers"
    assert {"qoqmed", "medical", "ecg"} <= set(front["tags"])
    assert "Research use only" in card and "not a medical device" in card


def test_the_card_counts_the_cases_and_names_their_licences(card: str) -> None:
    rows = table(card, "Data")
    assert ["train", "fundus", "eyes", "3", "not stated in the data (1), CC BY 4.0 (1), CC0 (1)", ""] in rows
    synthetic = Synthetic(**{k: v for k, v in tiny_run.RECIPE["data"]["train"][0].items() if k != "name"})
    for domain in ("ecg", "fundus"):
        count = str(synthetic.domains.count(domain))
        assert ["train", domain, "synthetic", count, "none: made by a program", "yes"] in rows
    assert ["valid", "ecg", "synthetic", "2", "none: made by a program", "yes"] in rows
    assert "40 of the 43 training cases are synthetic" in card


def test_the_cards_figures_are_those_of_the_exported_weights(run: Path, card: str, exported: Exported) -> None:
    step = checkpoint.step_of(chosen(run))
    (row,) = [row for row in tiny_run.read(run / "evaluations.jsonl") if row["global_step"] == step]
    heads, _, *rows = table(card, "Evaluation")
    for name, *cells in rows:
        values = row["greedy"]["overall"] if name == "overall" else row["greedy"]["domains"][name]
        for head, cell in zip(heads[1:], cells, strict=True):
            assert float(cell) == pytest.approx(values[head], rel=1e-3)
    assert [name for name, *_ in rows] == ["overall", "ecg", "fundus"]
    assert f"at step {step} (of these weights)" in card and exported.checkpoint == chosen(run).name


def test_the_card_tells_of_model_training_and_limits(run: Path, card: str) -> None:
    model = {row[0]: row[1:] for row in table(card, "Model")}
    assert model["base model"] == ["none: random weights"] and model["architecture"] == ["qoqmed_qwen2_5_vl"]
    assert model["ecg"][:2] == ["pulse", "acme-pulse 2.1"] and "num_tokens 4" in model["ecg"][3]
    assert model["pixels of a picture"] == ["784 to 7,056"] and model["stored as"] == ["float32"]
    stage = table(card, "Training")[2]
    assert stage[:3] == ["sft", "sft", "-"] and stage[5:] == ["0.002", "3"]
    assert "rewards: vowels 1 (shared with format), format 0.5 (ecg 0.25, ct 0; shared with vowels)." in card
    assert "No training cases: chest_xray, ct," in card and "No figures of a test split" in card
    environment = read(run / "environment.json")
    assert environment["packages"]["torch"] in card and environment["host"] not in card


def test_what_programs_read(run: Path, exported: Exported) -> None:
    found = read(exported.folder / "qoqmed.json")
    assert (found["checkpoint"], found["best"], found["seed"]) == (exported.checkpoint, "overall/f1", 3)
    assert found["data"]["frames"] == 2 and found["model"]["box_frame"].startswith("Pixels of the resized picture")
    assert found["rewards"] == {"vowels": 1.0, "format": 0.5}
    routing = {"domains": {"format": {"ecg": 0.25, "ct": 0}}, "shares": {"vowels": "rest", "format": "rest"}}
    assert found["routing"] == routing
    assert found["environment"]["code"] == read(run / "environment.json")["code"]
    assert found["evaluations"][-1] in tiny_run.read(run / "evaluations.jsonl")
    assert str(run) not in json.dumps(found)


def test_the_cards_code_runs(
    card: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(exported.folder)
    (tmp_path / "card.py").write_text(code)
    runpy.run_path(str(tmp_path / "card.py"))
    assert capsys.readouterr().out


def test_data_that_are_gone_are_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qoqmed import config
    from qoqmed.report.record import _origins

    recipe = config.load(run / "recipe.yaml", [f"data.root={tmp_path}"], files=False)
    origins, unread = _origins(recipe)
    assert {one.dataset for one in origins} == {"synthetic"}
    assert unread == ("train, jsonl: the data file does not exist",)


# ---- refusals


def test_a_copy_that_computes_otherwise_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qoqmed.policy.qwen2_5_vl import ClinicalQwen2_5_VL

    save = ClinicalQwen2_5_VL.save_pretrained

    def wrong(self: Any, folder: Path) -> None:
        weight = self.lm_head.weight
        with torch.no_grad():
            weight[3] += 1e-3
            save(self, folder)
            weight[3] -= 1e-3

    monkeypatch.setattr(ClinicalQwen2_5_VL, "save_pretrained", wrong)
    assert tiny_run.command("export", run, tmp_path / "model") == 1
    told = capsys.readouterr().err
    assert "the exported model does not compute what the run's does" in told
    assert "1 of" in told and "lm_head.weight" in told and "logits of 'text' differ by" in told
    assert "Traceback" not in told and list(tmp_path.iterdir()) == []


def test_a_missing_encoder_names_its_package(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean process has transformers and qoqmed, and not the third party's package."""
    monkeypatch.delenv("PYTHONPATH")  # of the third party's encoder
    with pytest.raises(ExportError, match=r"(?s)a clean process cannot load it.*install acme-pulse 2\.1"):
        qoqmed.export(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert tiny_run.command("export", run, tmp_path) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{run}/traces", "{out}"], "this is no run folder"),
        (["{run}", "{out}", "--dtype", "int8"], "--dtype"),
        (["{run}", "{out}", "--checkpoint", "first"], "--checkpoint"),
        (["{empty}", "{out}"], "this run has no checkpoint"),
    ],
)
def test_wrong_input(
    words: list[str], expected: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    places = {"run": run, "out": tmp_path / "model", "empty": empty}
    assert tiny_run.command("export", *(word.format(**places) for word in words)) == 2
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# ---- the questions that are compared


class Odd:
    """An encoder whose arrays nobody can guess."""

    placeholder, num_tokens = "<|odd_pad|>", 1

    def prepare(self, array: Any) -> Any:
        raise ZeroDivisionError


def test_a_modality_that_nothing_can_be_made_for_is_told(run: Path) -> None:
    actor, _ = qoqmed.load(run)
    processor = actor.prompter.processor
    processor.readers = {"ecg": make("encoders", Node("pulse")), "odd": Odd()}

    class Held:
        pass

    held = Held()
    held.processor = processor  # type: ignore[attr-defined]
    asked, left_out = questions(held)  # type: ignore[arg-type]
    assert left_out == ("odd",) and asked.keys() == {"text", "image", "ecg", "together"}


def test_digests_tell_dtype_shape_and_bytes() -> None:
    def of(value: torch.Tensor) -> dict[str, str]:
        module = torch.nn.Module()
        module.register_buffer("x", value)
        return reload.digests(module)

    kinds = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3).half(), torch.ones(2, 3)]
    assert len({of(value)["x"] for value in kinds}) == 5 and of(kinds[0]) == of(torch.zeros(2, 3))


@pytest.mark.real
def test_real_rows_tell_their_licences(real_root: Path) -> None:
    """Against a count of the manifest's own lines, by data set."""
    from qoqmed.datasets.jsonl import JsonLines

    mapping = {"labels": "label", "media": "files", "boxes_xywh": "bbox", "box_labels": "bbox_names"}
    data = JsonLines("manifest.jsonl", str(real_root), mapping=mapping)
    lines = [json.loads(line) for line in (real_root / "manifest.jsonl").read_text().splitlines()]
    expected = Counter((line["domain"], line["dataset"], line["licence"]) for line in lines)
    assert data.origins == expected and all(licence for _, _, licence in expected)
