"""Parts that keep all their promises but one, for ``test_check.py``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import presets, tree
from worldmodel.agents.values.twohot import TwoHotValue, TwoHotValueConfig
from worldmodel.models.cores.rssm import RSSM, RSSMConfig
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec, EnvStep

my_model: Any = presets.load_module(str(Path(__file__).parents[2] / "examples" / "my_model.py"))
MyModel: Any = my_model.MyModel


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """A small model that keeps its promises; the others say what they do wrong."""

    memory: int = 8
    choices: int = 2
    classes: int = 2
    units: int = 8
    free_nats: float = 0.1
    prior_scale: float = 1.0
    posterior_scale: float = 0.1

    def build(self, spec: EnvSpec) -> nn.Module:
        return globals()[type(self).__name__.removesuffix("Config")](self, spec)


Sound = MyModel


class LeakyConfig(SoundConfig): ...


class Leaky(MyModel):
    def _filter(self, state, obs, prev_action, is_first):
        return super()._filter(state, obs, prev_action, torch.zeros_like(is_first))


class ZeroedConfig(SoundConfig): ...


class Zeroed(MyModel):
    """Its first state is learned, but a reset puts zeros."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.start = nn.Parameter(torch.randn(config.memory))

    def initial(self, batch_size):
        state = super().initial(batch_size)
        return replace(state, memory=state.memory + self.start)

    def _filter(self, state, obs, prev_action, is_first):
        states, posteriors = [], []
        for t in range(is_first.shape[1]):
            keep = (~is_first[:, t, None]).float()
            cut = my_model.MyState(memory=state.memory * keep, latent=state.latent * keep)
            at = slice(t, t + 1)
            seen = {key: x[:, at] for key, x in obs.items()}
            one, posterior = super()._filter(cut, seen, prev_action[:, at] * keep[:, None], is_first[:, at] & False)
            state = tree.index(one, (slice(None), 0))
            states.append(state)
            posteriors.append(posterior[:, 0])
        return tree.stack(states, 1), torch.stack(posteriors, 1)


class InPlaceConfig(SoundConfig): ...


class InPlace(MyModel):
    def step(self, state, action):
        state.memory.mul_(0.9)
        return super().step(state, action)


class WideConfig(SoundConfig): ...


class Wide(MyModel):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.feature_dim += 1


class MisnamedConfig(SoundConfig): ...


class Misnamed(MyModel):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.loss_scales["Prior"] = self.loss_scales.pop("prior")


class ForesightConfig(SoundConfig): ...


class Foresight(MyModel):
    def observe(self, state, obs, prev_action, is_first):
        states = super().observe(state, obs, prev_action, is_first)
        return replace(states, memory=states.memory + states.memory.mean(1, keepdim=True))


class IdleConfig(SoundConfig): ...


class Idle(MyModel):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.idle = nn.Linear(2, 2)


class CrowdConfig(SoundConfig): ...


class Crowd(MyModel):
    def _recur(self, state, action):
        memory = super()._recur(state, action)
        return memory - memory.mean(0)


class HiddenConfig(SoundConfig): ...


class Hidden(MyModel):
    calls = 0

    def _recur(self, state, action):
        self.calls += 1
        return super()._recur(state, action) + 0.01 * self.calls


class UnsavedConfig(SoundConfig): ...


class Unsaved(MyModel):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.shift = torch.randn(self.feature_dim)

    def features(self, state):
        return super().features(state) + self.shift


class LogitConfig(SoundConfig): ...


class Logit(MyModel):
    def predict(self, previous, action, state):
        prediction = super().predict(previous, action, state)
        return replace(prediction, continues=torch.logit(prediction.continues) - 1.0)


class TrailingConfig(SoundConfig): ...


class Trailing(MyModel):
    def loss(self, batch, state):
        losses, states = super().loss(batch, state)
        return losses | {"prior": losses["prior"].unsqueeze(-1)}, states


class BrightConfig(SoundConfig): ...


class Bright(MyModel):
    def decode(self, state):
        return {key: 255 * x for key, x in super().decode(state).items()}


class ForgetfulConfig(SoundConfig): ...


class Forgetful(MyModel):
    def unpack(self, memory):
        state = super().unpack(memory)
        return replace(state, memory=torch.zeros_like(state.memory))

    def pack(self, state):
        return super().pack(state) | {"memory": torch.zeros_like(state.memory, dtype=torch.bfloat16)}


class MistypedConfig(SoundConfig): ...


class Mistyped(MyModel):
    @property
    def memory_spec(self):
        return {name: replace(array, dtype="float16") for name, array in super().memory_spec.items()}


class AbleConfig(SoundConfig): ...


class Able(MyModel):
    """With every ability."""

    def disagreement(self, state, action):
        return self.step(state, action).memory.std(-1)

    def fork(self, state, n):
        return tree.map(lambda x: x.repeat_interleave(n, 0), state)


class UnsureConfig(SoundConfig): ...


class Unsure(Able):
    def disagreement(self, state, action):
        return super().disagreement(state, action).unsqueeze(-1)


class ForkConfig(SoundConfig): ...


class Fork(Able):
    def fork(self, state, n):
        return tree.map(lambda x: x.repeat(n, 1), state)


class HalfConfig(SoundConfig): ...


class Half(MyModel):
    def predict(self, previous, action, state):
        return replace(super().predict(previous, action, state), reward=self.reward(self.features(state)).squeeze(-1))


class WritesConfig(SoundConfig): ...


class Writes(MyModel):
    def loss(self, batch, state):
        batch.reward.clamp_(-0.1, 0.1)
        return super().loss(batch, state)


class BranchConfig(SoundConfig): ...


class Branch(MyModel):
    def step(self, state, action):
        if action.sum() > 100:
            return state
        return super().step(state, action)


class ListConfig(SoundConfig): ...


class List(MyModel):
    def initial(self, batch_size):
        return [0, super().initial(batch_size)]


class CrashConfig(SoundConfig): ...


class Crash(MyModel):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.inverse = 1 / 0


class LackingConfig(SoundConfig): ...


class Lacking(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.feature_dim, self.loss_scales = 3, {}

    def initial(self, batch_size): ...
    def observe(self, state, obs, prev_action, is_first): ...
    def step(self, state, action): ...


@dataclass
class ThawedConfig:
    def build(self, spec):
        return MyModel(SoundConfig(), spec)


@dataclass(frozen=True, kw_only=True)
class HoldsConfig:
    net: Any = field(default_factory=lambda: nn.Linear(2, 2))

    def build(self, spec):
        return MyModel(SoundConfig(), spec)


# Cores, objectives, value learners

CORE = {"deter": 32, "hidden": 16, "stoch": 4, "classes": 5, "blocks": 4}


@dataclass(frozen=True, kw_only=True)
class FlatCoreConfig:
    def build(self, action_size, token_size):
        return FlatCore(RSSMConfig(**CORE), action_size, token_size)


class FlatCore(RSSM):
    def observe(self, *args):
        out = super().observe(*args)
        return replace(out, posterior=out.posterior.flatten(-2))


@dataclass(frozen=True, kw_only=True)
class LeakyCoreConfig:
    def build(self, action_size, token_size):
        return LeakyCore(RSSMConfig(**CORE), action_size, token_size)


class LeakyCore(RSSM):
    def observe(self, state, tokens, prev_action, is_first):
        return super().observe(state, tokens, prev_action, is_first & False)


@dataclass(frozen=True, kw_only=True)
class MuteObjectiveConfig:
    def build(self, feature_dim, token_size, make_decoder):
        return MuteObjective(feature_dim, token_size)


class MuteObjective(nn.Module):
    decodes = False
    scales = {"mute": 1.0}  # noqa: RUF012

    def __init__(self, feature_dim: int, token_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, token_size)

    def forward(self, features, tokens, batch):
        return {"mute": (self.head(features.detach()) - tokens).square().sum(-1)}


@dataclass(frozen=True, kw_only=True)
class ScalarObjectiveConfig:
    def build(self, feature_dim, token_size, make_decoder):
        return ScalarObjective(feature_dim, token_size)


class ScalarObjective(MuteObjective):
    def forward(self, features, tokens, batch):
        return {"mute": (self.head(features) - tokens).square().mean()}


VALUE = TwoHotValueConfig(units=8, layers=1, bins=15)


@dataclass(frozen=True, kw_only=True)
class EagerValueConfig:
    def build(self, feature_dim):
        return EagerValue(VALUE, feature_dim)


class EagerValue(TwoHotValue):
    def track(self, healthy: Tensor) -> None:
        super().track(torch.ones_like(healthy))


@dataclass(frozen=True, kw_only=True)
class GreedyValueConfig:
    def build(self, feature_dim):
        return GreedyValue(VALUE, feature_dim)


class GreedyValue(TwoHotValue):
    def loss(self, features: Tensor, return_: Tensor) -> Tensor:
        return (self.value(features) - return_).square()


@dataclass(frozen=True, kw_only=True)
class TallValueConfig:
    def build(self, feature_dim):
        return TallValue(VALUE, feature_dim)


class TallValue(TwoHotValue):
    def value(self, features: Tensor) -> Tensor:
        return super().value(features).unsqueeze(-1)


# Environments


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """A random walk of ten steps."""

    flaw: str = ""

    @property
    def name(self) -> str:
        return "walk"

    def build(self, index: int = 0) -> Walk:
        return Walk(self.flaw)


class Walk:
    def __init__(self, flaw: str) -> None:
        self.flaw, self.t, self.x = flaw, 0, np.zeros(2, np.float32)
        self.rng = np.random.default_rng()
        self.spec = EnvSpec(
            name="crawl" if flaw == "name" else "walk", obs={"x": ArraySpec(shape=(2,), dtype="float32")},
            action=ActionSpec(kind="continuous", size=2), max_steps=10,
        )

    def reset(self, seed: int | None = None) -> EnvStep:
        if seed is not None and self.flaw != "chance":
            self.rng = np.random.default_rng(seed)
        self.t = 0
        self.x[:] = self.rng.normal(size=2)
        return EnvStep(obs=self.seen(), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        if self.t >= 10 and self.flaw not in ("goes on", "endless"):
            raise RuntimeError("the walk is over; reset")
        self.t += 1
        self.x += action + 0.1 * self.rng.normal(size=2).astype(np.float32)
        is_last = self.t >= 10 and self.flaw != "endless"
        return EnvStep(obs=self.seen(), reward=float(self.x[0]), is_last=is_last)

    def seen(self) -> dict[str, np.ndarray]:
        if self.flaw == "dtype":
            return {"x": self.x.astype(np.float64)}
        return {"x": self.x if self.flaw == "shared" else self.x.copy()}

    def render(self) -> np.ndarray | None:
        if self.flaw == "drawing":
            self.rng.normal()
        return np.zeros((4, 4, 3), np.uint8)

    def get_state(self) -> dict[str, Any]:
        chance = {} if self.flaw == "clone" else {"rng": self.rng.bit_generator.state}
        return {"t": self.t, "x": self.x.copy(), **chance}

    def set_state(self, state: dict[str, Any]) -> None:
        self.t, self.x = state["t"], state["x"].copy()
        if "rng" in state:
            self.rng.bit_generator.state = state["rng"]

    def close(self) -> None: ...


class Outside(gymnasium.Env):
    """Its observations leave their space."""

    observation_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space: Any = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return np.full(2, 3.0, np.float32), {}

    def step(self, action):
        return np.full(2, 3.0, np.float32), 0.0, False, False, {}
