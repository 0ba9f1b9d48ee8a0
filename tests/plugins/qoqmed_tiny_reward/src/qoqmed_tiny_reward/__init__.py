"""A reward for short responses, and two parts with mistakes of their own."""

from qoqmed.types import Verdict


class Brief:
    """1 for a response of at most `limit` characters, else 0."""

    low, high = 0.0, 1.0

    def __init__(self, limit: int = 200) -> None:
        self.limit = limit

    def score(self, cases, rollouts, readings):
        return [Verdict(float(len(rollout.text) <= self.limit)) for rollout in rollouts]


class Raises:
    """Its constructor fails."""

    def __init__(self) -> None:
        raise ZeroDivisionError("no luck today")


class Careless:
    """It does not keep the contract: no `needs`."""
