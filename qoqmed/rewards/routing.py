"""Which rewards count in which domain, and how much: the recipe's `domains` and `share` of a reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Routing:
    """domains: by reward, its weight in a domain where that is another than elsewhere; 0: it is not asked there.

    shares: of rewards that share one weight, the name of what they share (see `combine`).
    """

    domains: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)

    def asks(self, reward: str, domain: str) -> bool:
        return self.domains.get(reward, {}).get(domain, 1.0) > 0

    def weights(self, weights: Mapping[str, float], domain: str) -> dict[str, float]:
        """The weights in a domain."""
        return {name: self.domains.get(name, {}).get(domain, weight) for name, weight in weights.items()}
