"""What rows say together: normalised scores, their statistics over seeds and problems, and what had to hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.bench.planners.contest import Row
from worldmodel.report import stats

RIVALS = ("policy", "cem", "categorical")
"""Whom the others are compared with: the first of these that took part."""


def scored(rows: Sequence[Row]) -> list[Row]:
    """Every row with "mean", "iqm" and its interval, and "score": 0 is what random actions get, 1 the optimum or, where
    nobody knows it, the best row of the problem."""
    done = []
    for row in rows:
        if "error" in row:
            done.append(row)
            continue
        peers = [r for r in rows if r["problem"] == row["problem"] and r["layer"] == row["layer"] and "error" not in r]
        means = {(r["planner"], r["budget"]): float(np.mean(r["returns"])) for r in peers}
        low = means.get(("random", 0), min(means.values()))
        best = row["optimum"] if row.get("optimum") is not None else max(means.values())
        returns = np.asarray(row["returns"])
        interval = stats.bootstrap(stats.iqm, [returns.mean(1)])
        # (seeds,)
        score = (returns.mean(1) - low) / max(best - low, 1e-9)
        facts: Row = {
            "mean": float(returns.mean()), "iqm": float(interval.point), "low": float(interval.low),
            "high": float(interval.high), "score": score.tolist(),
        }
        if row.get("optimum"):
            facts["regret"] = (row["optimum"] - float(returns.mean())) / abs(row["optimum"])
        done.append(row | _rounded(facts))
    return done


def summary(rows: Sequence[Row]) -> list[Row]:
    """By layer, planner and budget, over all problems that it took part in: IQM of scores with its 95 % interval, model
    evaluations and milliseconds of a decision (geometric means), and the probability of beating a rival."""
    done, groups = [], {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["layer"], row["planner"], row["budget"]), []).append(row)
    for (layer, planner, budget), members in groups.items():
        interval = stats.bootstrap(stats.iqm, [np.asarray(row["score"]) for row in members])
        facts = {
            "score": float(interval.point), "low": float(interval.low), "high": float(interval.high),
            "evaluations": _geometric([row["evaluations"] for row in members]),
            "ms": _geometric([row["ms"] for row in members]),
            "clamped": float(np.mean([row["clamped"] for row in members])),
            "lost": float(np.mean([r["lost"] for r in members])),
        }
        gaps = [row["gap"] for row in members if "gap" in row]
        if gaps:
            facts["gap"] = float(np.mean(gaps))
        rival = next((name for name in RIVALS if name != planner and _same(groups, layer, name, budget)), "")
        if rival and planner not in ("random", *RIVALS[:1]):
            theirs = {row["problem"]: row for row in _same(groups, layer, rival, budget)}
            pairs = [(np.asarray(r["score"]), np.asarray(theirs[r["problem"]]["score"]))
                     for r in members if r["problem"] in theirs]
            if pairs:
                ours, others = zip(*pairs)
                chance = stats.bootstrap(stats.probability_of_improvement, ours, others)
                facts |= {
                    "beats": float(chance.point), "beats_low": float(chance.low), "beats_high": float(chance.high),
                }
        about = {"layer": layer, "planner": planner, "budget": budget, "problems": len(members), "rival": rival}
        done.append(about | _rounded(facts))
    return done


def checks(rows: Sequence[Row]) -> list[Row]:
    """What has to hold of planners, whatever they are: a sentence each, and whether it does."""
    told: list[Row] = []
    fair = [row for row in rows if "error" not in row and row["planner"] != "random"]
    for row in fair:
        if row.get("allowed") is not None:
            said = f"{row['planner']} is within {row['allowed']:.0%} of the optimum of {row['problem']}"
            told.append({"what": said, "number": row["regret"], "holds": row["regret"] <= row["allowed"]})
    least = {}
    for name in ("cem", "icem"):
        few = [row for row in fair if row["layer"] == "analytic" and row["planner"] == name and row["budget"] == 100]
        if few:
            least[name] = float(stats.iqm([np.asarray(row["score"]) for row in few]))
    if len(least) == 2:
        told.append({
            "what": "with 100 trajectories iCEM is no worse than CEM (IQM of analytic scores)",
            "number": least["icem"] - least["cem"], "holds": least["icem"] >= least["cem"],
        })
    if fair:
        most = max(row["largest_action"] for row in fair)
        told.append({"what": "no action leaves [-1, 1]", "number": most, "holds": most <= 1})
        broken = max(row["not_finite"] for row in fair)
        told.append({"what": "every action is finite", "number": broken, "holds": broken == 0})
    for row in fair:
        if row["problem"] == "cliff" and row["budget"] >= 500:
            said = f"{row['planner']} with {row['budget']} trajectories stays out of the pit"
            told.append({"what": said, "number": row["alive"], "holds": row["alive"] == 1})
    return told


def _same(groups: dict[Any, list[Row]], layer: str, planner: str, budget: int) -> list[Row]:
    return groups.get((layer, planner, budget)) or groups.get((layer, planner, 0)) or []


def _geometric(numbers: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(numbers, 1e-9))))) if min(numbers) > 0 else 0.0


def _rounded(facts: Row) -> Row:
    return {key: round(x, 6) if isinstance(x, float) else x for key, x in facts.items()}
