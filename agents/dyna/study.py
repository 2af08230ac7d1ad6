"""An experiment on bootstraps: agents that differ in one thing learn from the same fixed data, and the truth, which is
known, tells what they believe and what they can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.types import Batch, EnvSpec, Step

NOTES = 20
"""Times in a run that it is looked at."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to learn."""

    agent: Any
    """``build(spec, device, seed) -> Agent``."""
    seeds: int = 3
    """How many seeds are run of it, at most as many as are asked for; 0: none. Where it is named, as many as asked."""
    said: str = ""
    """What it is, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Data, truth, variants, and what has to come out."""

    name: str
    title: str
    spec: EnvSpec
    truth: Any
    """The true dynamics, a ``WorldModel``."""
    data: Callable[[torch.Generator], Batch]
    """The fixed data, (B, T)."""
    variants: Mapping[str, Variant]
    estimate: Callable[[Any, Tensor], Tensor]
    """An agent and features (N, F) to what it believes its return from there to be, (N,)."""
    updates: int
    rows: int
    """Rows of the data that an update is given."""
    steps: int
    """Of the episodes that returns are measured on."""
    discount: float
    best: Callable[[Tensor], Tensor] | None = None
    """Starts (N, F) to the best return of an episode, which returns are then given in shares of."""
    bound: float | None = None
    """What no true value exceeds."""
    accept: tuple[tuple[str, str, str, float], ...] = field(default=())
    """(variant, number, "<" or ">", limit) of the mean over seeds, or of every seed where the number ends in "!"."""

    def run(self, name: str, seed: int, updates: int | None = None) -> dict[str, Any]:
        """Learn and look; {"value", "return", "bias": at the end, "curve": lists by name, "seconds" of processor}."""
        start, total = time.process_time(), updates or self.updates
        generator = torch.Generator().manual_seed(seed)
        data = self.data(generator)
        agent = self.variants[name].agent.build(self.spec, device="cpu", seed=seed)
        curve: dict[str, list[float]] = {}
        metrics: dict[str, Tensor] = {}
        every = max(1, total // NOTES)
        for update in range(total):
            rows = torch.randint(len(data.reward), (self.rows,), generator=generator)
            given = data if update == 0 else tree.index(data, rows)
            metrics |= agent.learn(given).metrics
            if (update + 1) % every == 0:
                seen = {key: float(x) for key, x in metrics.items() if key.split("/")[0] in ("value", "reach")}
                seen |= self.look(agent, data) | {"update": float(update + 1)}
                for key, x in seen.items():
                    curve.setdefault(key, []).append(round(x, 5))
        # the last quarter: one evaluation of one moment is a matter of luck
        late = {key: sum(xs[-NOTES // 4 :]) / len(xs[-NOTES // 4 :]) for key, xs in curve.items()}
        out: dict[str, Any] = {key: round(late[key], 4) for key in ("return", "bias", "value/mean", "value/start")}
        return out | {"curve": curve, "seconds": round(time.process_time() - start, 1)}

    @torch.no_grad()
    def look(self, agent: Any, data: Batch) -> dict[str, float]:
        """"return" of the policy's mode, and "bias": what the agent believes at the start, less what it then gets."""
        first = {key: x[:, 0] for key, x in data.obs.items()}
        count = min(200, len(data.reward))
        obs = {key: x[:count].unsqueeze(1) for key, x in first.items()}
        before = torch.zeros(count, 1, self.spec.action.size)
        state = self.truth.observe(
            self.truth.initial(count), obs, before, torch.ones(count, 1, dtype=torch.bool)
        )
        state = tree.index(state, (slice(None), 0))
        start, carry = self.truth.features(state), agent.initial(count)
        believed = self.estimate(agent, start).mean()
        return_, discounted, weight = torch.zeros(count), torch.zeros(count), 1.0
        flags = torch.zeros(count, dtype=torch.bool)
        far = max(self.steps, round(3 / (1 - self.discount)))
        for step in range(far):
            now = Step(
                obs={"vector": self.truth.features(state)}, reward=torch.zeros(count), is_first=flags,
                is_last=flags, is_terminal=flags,
            )
            action, carry = agent.act(carry, now, explore=False)
            arrived = self.truth.step(state, action)
            reward = self.truth.predict(state, action, arrived).reward
            return_ += reward * (step < self.steps)
            discounted += weight * reward
            weight *= self.discount
            state = arrived
        score = return_ / self.best(start) if self.best is not None else return_
        true = float(discounted.mean())
        return {
            "return": float(score.mean()), "bias": float(believed) - true, "value/start": float(believed),
            "true/start": true,
        }

    def verdicts(self, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What had to come out, of the variants that were run: {"what", "found", "passed"}."""
        out = []
        for variant, number, sign, limit in self.accept:
            if variant not in found:
                continue
            key, each = number.rstrip("!"), number.endswith("!")
            values = [run[key] for run in found[variant]["seeds"].values()]
            mean = sum(values) / len(values)
            measured = values if each else [mean]
            passed = all(x < limit if sign == "<" else x > limit for x in measured)
            out.append({
                "what": f"{variant}: {key} {sign} {limit:g}" + (" on every seed" if each else ""),
                "found": [round(x, 3) for x in measured], "passed": passed,
            })
        return out
