"""What the installed domains know, each asked once: a file has a hundred thousand rows of one data set."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.contracts import Domain
from qoqmed.datasets.fields import wrong
from qoqmed.errors import near


class KnownDomains:
    """A copy for another process starts empty."""

    def __init__(self) -> None:
        self._plugins: dict[str, Domain | None] = {}
        self._spaces: dict[tuple[str, str], tuple[str, ...]] = {}
        self._named: dict[tuple[Any, ...], str | None] = {}

    def __reduce__(self) -> tuple[type[KnownDomains], tuple[()]]:
        return type(self), ()

    def plugin(self, domain: str) -> Domain | None:
        """None: a user's own domain that has no plugin."""
        if domain not in self._plugins:
            there = domain in (info.name for info in registry.available("domains"))
            self._plugins[domain] = registry.make("domains", Node(domain)) if there else None
        return self._plugins[domain]

    def space(self, domain: str, dataset: str) -> tuple[str, ...]:
        """The data set's labels; () where the domain does not know it."""
        if (domain, dataset) not in self._spaces:
            plugin = self.plugin(domain)
            self._spaces[domain, dataset] = tuple(plugin.datasets.get(dataset, ())) if plugin else ()
        return self._spaces[domain, dataset]

    def phrased(self, domain: str, case_id: str, dataset: str = "") -> str:
        """One of the domain's questions for the data set, else of its phrasings; always the same one for an id."""
        plugin = self.plugin(domain)
        if plugin is None:
            hint = near(domain, [info.name for info in registry.available("domains")])
            mend = hint or "give the row a question, or the domain a plugin"
            raise wrong(f"no question, and no plugin for the domain {domain!r} to phrase one", mend=mend)
        digest = hashlib.blake2b(case_id.encode(), digest_size=8).digest()
        asked = getattr(plugin, "questions", None)
        questions = (tuple(asked(dataset)) if callable(asked) else ()) or plugin.phrasings
        return questions[int.from_bytes(digest) % len(questions)]

    def meant(self, *names: Any) -> str | None:
        """The one domain that a text names, or that has a data set of that name; None: not known, or not one alone."""
        texts = tuple(name for name in names if isinstance(name, str))
        if texts not in self._named:
            found = (self._meant(plain(name)) for name in texts)
            self._named[texts] = next((domain for domain in found if domain), None)
        return self._named[texts]

    def _meant(self, name: str) -> str | None:
        known = [info.name for info in registry.available("domains")]
        if name in known:
            return name
        having = [each for each in known if name in map(plain, getattr(self.plugin(each), "datasets", ()))]
        return having[0] if len(having) == 1 else None


def plain(name: str) -> str:
    """Chest X-Ray -> chest_xray, VinDr-CXR -> vindr_cxr."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").replace("x_ray", "xray")
