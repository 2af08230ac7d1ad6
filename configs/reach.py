"""The experiments of ``worldmodel bench reach``: rollouts that are cut off, bootstraps from where no data is.

The dynamics are the true ones throughout, so nothing that fails here is a fault of a learned model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import DreamerConfig
from worldmodel.agents.dyna.agent import BranchConfig, DynaConfig
from worldmodel.agents.dyna.policy import PolicyConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.dyna.study import Study, Variant
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.agents.values.reach_aware import ReachAwareValueConfig
from worldmodel.models.analytic import Pendulum, Point
from worldmodel.models.arm import Arm, ArmConfig, reach_out
from worldmodel.models.plateau import KnownConfig, Plateau, swing_up
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec

DETECTOR = ReachConfig(detector="knn")
RAVL: dict[str, Any] = {"members": 10, "diversity": 1.0, "init": "edac"}
"""Critics as published; their policy begins as they do."""


def studies() -> dict[str, Study]:
    """All of them, by name."""
    return {study.name: study for study in (plateau(), pendulum(), arm(), dreamer())}


def plateau() -> Study:
    """2-D, SAC on dreams alone: what lies beyond the last step of a branch is worth what nobody checks."""

    def dyna(length: int = 6, **changes: Any) -> DynaConfig:
        value = CriticsConfig(units=(64, 64), **{k: changes.pop(k) for k in VALUE if k in changes})
        return DynaConfig(
            model=KnownConfig(name="plateau"), branch=BranchConfig(rows=1000, every=400, keep=5, length=length),
            policy=PolicyConfig(units=(64, 64), init=value.init), value=value, real_ratio=0.0, discount=0.95, lr=1e-3,
            policy_lr=1e-3, recent=2000, first=2000, **changes,
        )

    variants = {
        "base": Variant(agent=dyna(), said="min of 2 critics"),
        "k12": Variant(agent=dyna(length=12), said="branches of 12 steps instead of 6"),
        "patch": Variant(agent=dyna(patch="edge"), said="the optimum in the targets beyond reach"),
        "reach": Variant(agent=dyna(norm="layer", reach=DETECTOR), said="ours: LayerNorm, detector at the cut"),
        "layernorm": Variant(agent=dyna(norm="layer"), seeds=1, said="critics with LayerNorm"),
        "detector": Variant(agent=dyna(reach=DETECTOR), seeds=1, said="detector alone, no LayerNorm"),
        "random": Variant(agent=dyna(patch="random"), seeds=1, said="the optimum in as many random targets"),
        "lcb10": Variant(agent=dyna(members=10, pessimism="lcb"), seeds=1, said="10 critics, mean - 3 std"),
        "min10": Variant(agent=dyna(members=10), seeds=1, said="min of 10 critics"),
        "ravl": Variant(agent=dyna(**RAVL), seeds=1, said="min of 10, EDAC's eta 1, as published"),
        "min50": Variant(agent=dyna(members=50), seeds=0, said="min of 50 critics"),
    }
    healthy = [(name, "value/mean!", "<", 20.5) for name in ("k12", "patch", "reach")]
    healthy += [(name, "return!", ">", 0.95) for name in ("k12", "patch", "reach")]
    return Study(
        name="plateau", title="Plateau, true dynamics, branches of 6 steps, SAC", spec=_spec("plateau", 2, 2),
        truth=Plateau(), data=_scattered, variants=variants, estimate=_q, updates=6000, rows=16, steps=30,
        discount=0.95, best=_best_of_30, bound=20.0,
        accept=(
            ("base", "value/mean!", ">", 20.0), ("base", "return!", "<", 0.0), *healthy,
            ("random", "return!", "<", 0.0),
        ),
    )


def pendulum() -> Study:
    """Gymnasium's pendulum, data of a controller that swings it up, branches of one step."""

    def dyna(length: int = 1, **changes: Any) -> DynaConfig:
        value = CriticsConfig(units=(128, 128), **{k: changes.pop(k) for k in VALUE if k in changes})
        return DynaConfig(
            model=KnownConfig(name="pendulum"), branch=BranchConfig(rows=2000, every=500, keep=5, length=length),
            policy=PolicyConfig(units=(128, 128), init=value.init), value=value, real_ratio=0.05,
            rule=SoftConfig(backup="plain"), recent=4000, first=4000, **changes,
        )

    variants = {
        "base": Variant(agent=dyna(), said="k = 1, min of 2 critics"),
        "reach": Variant(
            agent=dyna(length=20, norm="layer", reach=DETECTOR), said="ours: k = 20, LayerNorm, detector at the cut"
        ),
        "k20": Variant(agent=dyna(length=20), seeds=1, said="k = 20, min of 2 critics"),
        "layernorm": Variant(agent=dyna(norm="layer"), seeds=1, said="k = 1, LayerNorm"),
        "reach1": Variant(
            agent=dyna(norm="layer", reach=DETECTOR), seeds=1, said="ours at k = 1: LayerNorm, detector at the cut"
        ),
        "layernorm20": Variant(agent=dyna(length=20, norm="layer"), seeds=0, said="k = 20, LayerNorm"),
        "min10": Variant(agent=dyna(members=10), seeds=0, said="k = 1, min of 10 critics"),
        "ravl": Variant(
            agent=dyna(**RAVL), seeds=0, said="k = 1, min of 10, EDAC's eta 1, as published"
        ),
        "ravl_layer": Variant(
            agent=dyna(**RAVL, norm="layer"), seeds=0, said="k = 1, as published, with LayerNorm"
        ),
    }
    return Study(
        name="pendulum", title="Pendulum-v1, true dynamics, SAC", spec=_spec("pendulum", 3, 1), truth=Pendulum(),
        data=_swung, variants=variants, estimate=_q, updates=10_000, rows=2, steps=200, discount=0.99, bound=0.0,
        accept=(
            ("base", "bias", ">", 400.0), ("base", "return", "<", -1200.0), ("reach", "bias", "<", 150.0),
            ("reach", "return", ">", -350.0),
        ),
    )


def arm() -> Study:
    """MuJoCo's arm of Gymnasium's Reacher, data of a controller that reaches, branches of one step."""

    def dyna(length: int = 1, **changes: Any) -> DynaConfig:
        value = CriticsConfig(units=(64, 64), **{k: changes.pop(k) for k in VALUE if k in changes})
        return DynaConfig(
            model=ArmConfig(), branch=BranchConfig(rows=500, every=300, keep=5, length=length),
            policy=PolicyConfig(units=(64, 64), init=value.init), value=value, real_ratio=0.05,
            rule=SoftConfig(backup="plain"), recent=2000, first=2000, batch_size=128, lr=1e-3, policy_lr=1e-3,
            **changes,
        )

    variants = {
        "base": Variant(agent=dyna(), seeds=1, said="k = 1, min of 2 critics"),
        "layernorm": Variant(agent=dyna(norm="layer"), seeds=1, said="k = 1, LayerNorm"),
        "reach": Variant(
            agent=dyna(norm="layer", reach=DETECTOR), seeds=1, said="k = 1, ours: LayerNorm, detector at the cut"
        ),
        "k20": Variant(agent=dyna(length=20), seeds=1, said="k = 20, min of 2 critics"),
        "ravl": Variant(
            agent=dyna(**RAVL), seeds=1, said="k = 1, min of 10, EDAC's eta 1, as published"
        ),
    }
    return Study(
        name="arm", title="Reacher-v5, true dynamics (MuJoCo), branches of one step, SAC", spec=_spec("arm", 10, 2),
        truth=Arm(), data=_reached, variants=variants, estimate=_q, updates=6000, rows=2, steps=50, discount=0.99,
        bound=0.0,
    )


def dreamer() -> Study:
    """The same plane for a Dreamer: state values, lambda-returns, a policy by the gradient of the dynamics."""

    def agent(imagination: int = 6, **changes: Any) -> DreamerConfig:
        settings: dict[str, Any] = {"members": 1, "norm": "none", "reach": ReachConfig(detector="none")} | changes
        return DreamerConfig(
            model=KnownConfig(name="slope"),
            actor=ActorConfig(units=64, layers=2, gradient="dynamics", entropy=1e-3, scale=0.1),
            value=ReachAwareValueConfig(units=(64, 64), **settings),
            imagination=imagination, horizon=20.0, replay_value_scale=0.0, lr=1e-3, warmup=0, context="blank",
        )

    variants = {
        "base": Variant(agent=agent(), seeds=2, said="H = 6, one critic"),
        "reach": Variant(
            agent=agent(norm="layer", reach=ReachConfig(detector="rnd")), seeds=2,
            said="ours: LayerNorm, detector at the cut by a network's error",
        ),
        "h15": Variant(agent=agent(imagination=15), seeds=1, said="H = 15"),
        "knn": Variant(
            agent=agent(norm="layer", reach=DETECTOR), seeds=0, said="LayerNorm, detector by the nearest neighbour"
        ),
        "layernorm": Variant(agent=agent(norm="layer"), seeds=1, said="H = 6, LayerNorm"),
        "lcb10": Variant(
            agent=agent(members=10, pessimism="lcb", beta=10.0), seeds=1, said="10 critics, mean - 10 std at the cut"
        ),
    }
    return Study(
        name="dreamer", title="Plateau with a slope, true dynamics, Dreamer", spec=_spec("slope", 2, 2),
        truth=Plateau(slope=True), data=_single, variants=variants, estimate=lambda a, x: a.value.value(x),
        updates=4000, rows=128, steps=30, discount=0.95, best=_best_of_30, bound=20.0,
        accept=(("base", "return", "<", 0.0), ("reach", "return", ">", 0.95), ("h15", "return", ">", 0.95)),
    )


VALUE = ("members", "norm", "pessimism", "beta", "diversity", "init")
"""What of a variant is a setting of its critics."""


def _spec(name: str, size: int, actions: int) -> EnvSpec:
    obs = {"vector": ArraySpec(shape=(size,), dtype="float32")}
    return EnvSpec(name=name, obs=obs, action=ActionSpec(kind="continuous", size=actions))


def _q(agent: Any, x: Tensor) -> Tensor:
    return agent.value.value(x, agent.actor(x).mode())


def _best_of_30(start: Tensor) -> Tensor:
    """Outwards to the plateau, and stay there."""
    steps = torch.arange(1, 31)
    return ((Plateau.rho(start).unsqueeze(-1) + steps) / Plateau.ramp).clamp(max=1.0).sum(-1)


def _scattered(generator: torch.Generator) -> Batch:
    """2000 steps from anywhere in [-1, 1]^2."""
    x = torch.rand(2000, 2, generator=generator) * 2 - 1
    action = torch.rand(2000, 1, 2, generator=generator) * 2 - 1
    return _played(Plateau(), x, lambda at, now: action[:, at])


def _single(generator: torch.Generator) -> Batch:
    """2000 states from anywhere in [-1, 1]^2, each an episode of its own: dreams begin in every state they see."""
    lead = (1000, 2)
    one, nothing = torch.ones(lead, dtype=torch.bool), torch.zeros(*lead, 2)
    return Batch(
        obs={"vector": torch.rand(*lead, 2, generator=generator) * 2 - 1}, action=nothing, prev_action=nothing,
        reward=torch.zeros(lead), is_first=one, is_last=one, is_terminal=~one,
    )


def _swung(generator: torch.Generator) -> Batch:
    """20 episodes of 200 steps: swing up and hold, one action in five at random."""
    angle = (torch.rand(20, generator=generator) * 2 - 1) * torch.pi
    speed = torch.rand(20, generator=generator) * 2 - 1
    start = torch.stack([angle.cos(), angle.sin(), speed], -1)

    def choose(at: int, now: Tensor) -> Tensor:
        noise = torch.rand(20, 1, generator=generator) * 2 - 1
        return torch.where(torch.rand(20, 1, generator=generator) < 0.2, noise, swing_up(now))

    return _played(Pendulum(), start, choose, steps=200)


def _reached(generator: torch.Generator) -> Batch:
    """40 episodes of 50 steps: a controller, one action in five at random."""
    angle = (torch.rand(40, 2, generator=generator) * 2 - 1) * 0.1
    place, far = torch.rand(40, 2, generator=generator), 0.2
    # in a disc, every place alike
    around, away = 2 * torch.pi * place[:, :1], far * place[:, 1:].sqrt()
    truth = Arm()

    def choose(at: int, now: Tensor) -> Tensor:
        noise = torch.rand(40, 2, generator=generator) * 2 - 1
        return torch.where(torch.rand(40, 1, generator=generator) < 0.2, noise, reach_out(now))

    start = truth.start(angle, torch.cat([around.cos(), around.sin()], 1) * away)
    return _played(truth, start, choose, steps=50)


def _played(model: Any, start: Tensor, choose: Any, steps: int = 1) -> Batch:
    """Episodes of so many steps, cut off at their end."""
    state, count = Point(x=start), len(start)
    xs, actions, rewards = [start], [], [torch.zeros(count)]
    for at in range(steps):
        action = choose(at, state.x)
        arrived = model.step(state, action)
        rewards.append(model.predict(state, action, arrived).reward)
        actions.append(action)
        xs.append(arrived.x)
        state = arrived
    nothing = torch.zeros_like(actions[0])
    at = torch.arange(steps + 1).expand(count, -1)
    return Batch(
        obs={"vector": torch.stack(xs, 1)}, action=torch.stack([*actions, nothing], 1),
        prev_action=torch.stack([nothing, *actions], 1), reward=torch.stack(rewards, 1), is_first=at == 0,
        is_last=at == steps, is_terminal=torch.zeros(count, steps + 1, dtype=torch.bool),
    )


def reduced(study: Study) -> Study:
    """The same with what a quick look takes: the variants that verdicts are about, one seed of each."""
    judged = {variant for variant, *_ in study.accept}
    kept = {name: replace(variant, seeds=1) for name, variant in study.variants.items() if name in judged}
    return replace(study, variants=kept)
