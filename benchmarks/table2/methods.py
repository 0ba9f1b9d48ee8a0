"""What is compared. A method is a list of overrides of `recipes/suite.yaml` and what one of its cases costs.

Estimators, and where the KL goes, are those of the paper's setting (`recipes/ppo.yaml` and the others); the rest of the
setting is one for all. The value head of PPO learns ten times as fast as the policy, as there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STAGE = "training"
GROUPS = {
    "paper": "The paper's nine",
    "more": "Beside them: focal loss, domain re-sampling, bounded DRPO",
    "balanced": "Trained on balanced domains (the paper's Figure 5)",
    "caps": "Cluster caps and elbow tolerance (Table 3 of v2)",
    "rewards": "Reward composition, accuracy : IoU (Table 3 of v2)",
}


@dataclass(frozen=True)
class Method:
    """overrides: of the suite's recipe. gold: a case costs one sample, its gold response; else the recipe's rollouts,
    and `greedy` more. against: the method whose F1 its own is compared with, seed by seed. paper: overall accuracy and
    F1 in Table 2 or 3 of v2, of another model on other data."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    group: str = "paper"
    gold: bool = False
    greedy: int = 0
    against: str = "grpo"
    paper: tuple[float, float] | None = None

    def samples_per_case(self, rollouts: int) -> int:
        return 1 if self.gold else rollouts + self.greedy


WARM_START = Method("warm_start", "warm start", group="start", gold=True)


def _advantage(node: str, *objective: str) -> tuple[str, ...]:
    return (f"stages.{STAGE}.advantage={node}", *(f"stages.{STAGE}.objective.{words}" for words in objective))


def _sft(node: str) -> tuple[str, ...]:
    """Supervised: the learning rate is a third of the warm start's, as the policy has learned to read already."""
    stage = f"stages.{STAGE}"
    return (f"{stage}.objective={node}", f"{stage}.advantage=null", f"{stage}.optimizer.lr=1e-3")


def _drpo(*arguments: str) -> tuple[str, ...]:
    return _advantage("{" + ", ".join(("name: drpo", *arguments)) + "}")


SFT = Method("sft", "SFT", _sft("{name: sft}"), gold=True, paper=(0.602, 0.139))
GRPO = Method("grpo", "GRPO", _advantage("{name: grpo}"), paper=(0.609, 0.193))
DRPO = Method("drpo", "DRPO", _drpo(), paper=(0.666, 0.295))
PAPER = (
    SFT,
    Method(
        "ppo",
        "PPO",
        (*_advantage("{name: gae, lam: 0.95}", "kl=k1"), f"stages.{STAGE}.optimizer.value_lr=2e-3"),
        paper=(0.665, 0.234),
    ),
    Method("remax", "ReMax", _advantage("{name: remax}", "kl=k1"), greedy=1, paper=(0.596, 0.176)),
    Method("reinforce_pp", "REINFORCE++", _advantage("{name: reinforce_pp}", "kl=k1"), paper=(0.621, 0.202)),
    Method("rloo", "RLOO", _advantage("{name: rloo}"), paper=(0.611, 0.189)),
    GRPO,
    Method("drpo_domain_only", "DRPO, domains only", _drpo("cluster: false"), paper=(0.668, 0.237)),
    Method("drpo_no_kl", "DRPO, no KL", _drpo("kl_damping: false"), paper=(0.668, 0.283)),
    DRPO,
)
RESAMPLED = f"stages.{STAGE}.data.balanced=true"
MORE = (
    Method("sft_focal", "SFT, focal loss (gamma 2)", _sft("{name: sft, focal: 2.0}"), gold=True),
    Method("grpo_resampled", "GRPO, domains re-sampled", (*GRPO.overrides, RESAMPLED)),
    Method("drpo_sorted", "DRPO, sorted rewards", _drpo("sort_rewards: true")),
    Method("drpo_window", "DRPO, window of 8 steps", _drpo("window: 8")),
    Method("drpo_max_ratio", "DRPO, scale ratio at most 10", _drpo("max_ratio: 10.0")),
)


def _variant(method: Method, ending: str, title: str, *overrides: str, **changes: object) -> Method:
    new = replace(method, name=f"{method.name}_{ending}", title=f"{method.title}, {title}", paper=None)
    return replace(new, overrides=(*method.overrides, *overrides), **changes)  # type: ignore[arg-type]


BALANCED = tuple(
    _variant(method, "balanced", "balanced data", "data.train.0.balanced=true", against="grpo_balanced")
    for method in (SFT, GRPO, DRPO)
)
CAPS = (
    Method("drpo_cap_3", "DRPO, at most 3 clusters", _drpo("max_clusters: 3"), against="drpo", paper=(0.642, 0.244)),
    Method("drpo_cap_20", "DRPO, at most 20 clusters", _drpo("max_clusters: 20"), against="drpo", paper=(0.670, 0.294)),
    Method("drpo_elbow_02", "DRPO, elbow tolerance 0.02", _drpo("elbow_tolerance: 0.02"), against="drpo"),
    Method("drpo_elbow_30", "DRPO, elbow tolerance 0.3", _drpo("elbow_tolerance: 0.3"), against="drpo"),
)
TURNED = ("rewards.accuracy.weight=0.2", "rewards.iou.weight=0.6")
REWARDS = (
    _variant(GRPO, "reward_2_6", "0.2 : 0.6", *TURNED),
    _variant(DRPO, "reward_2_6", "0.2 : 0.6", *TURNED, against="drpo", paper=(0.652, 0.260)),
)

METHODS: tuple[Method, ...] = tuple(
    replace(method, group=group)
    for group, methods in zip(GROUPS, (PAPER, MORE, BALANCED, CAPS, REWARDS), strict=True)
    for method in methods
)
