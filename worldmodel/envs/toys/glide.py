"""Glide: a disc with inertia has to glide onto a ring and stay there.

Its speed is hidden in one picture. Each step is worth up to 1, by the distance to the ring's centre; an episode is 50
steps, and its end is a time limit, not a death.
"""

from __future__ import annotations

import numpy as np

from worldmodel.envs.toys.draw import UNITS, Sprite
from worldmodel.specs import ActionSpec

STEPS = 50
THRUST = 0.02
"""Change of speed by a full action, rooms per step."""
DAMPING = 0.8
"""Share of its speed that the disc keeps in a step: it is never faster than THRUST / (1 - DAMPING) = 0.1."""
WIND = 0.01
"""Change of speed to the left in a step, where wind blows."""
RADIUS = 3.5
"""Of the disc, in units of the picture. Half of it needs twice the updates to be seen exactly."""
NEAR, MARGIN = 0.05, 0.5
"""Reward is 1 within NEAR of the target, then a bell that is down to 0.1 at NEAR + MARGIN (rooms)."""


class Glide:
    """N games of Glide, see ``base.Task``. Actions: thrust in x and y, in [-1, 1]."""

    action = ActionSpec(kind="continuous", size=2)
    draws = 8
    max_steps = STEPS
    background = np.array([30, 24, 34], np.uint8)

    def __init__(self, num_envs: int, size: int, *, upwind: bool = False) -> None:
        """Args: upwind: discs start in the left fifth of the room, targets lie in the right one, and wind blows against
        whoever goes there: random play stays where it began (99 of 100 episodes left of 0.21)."""
        self.upwind = upwind
        wind = WIND if upwind else 0.0
        self._wind = np.array([wind, 0.0])
        # random: mean of 20,000 episodes of uniform actions, standard error 0.05; optimum: mean of as many of `expert`
        # (0.01), which brakes as late as it may on each axis: reached for certain, not proven to be the most there is
        self.reference = {"random": 0.061, "optimum": 37.63} if upwind else {"random": 5.57, "optimum": 44.87}
        # (2, 401) how far a disc still goes on each axis that moves towards its target: the wind helps to brake
        self._stopping = np.stack([_stopping_distances(_SPEEDS, THRUST + wind), _stopping_distances(_SPEEDS, THRUST)])
        self.state = {
            "tick": np.zeros(num_envs, np.int64),
            "place": np.zeros((num_envs, 2)),
            "speed": np.zeros((num_envs, 2)),
            "target": np.zeros((num_envs, 2)),
        }
        self._ring = Sprite("disc", (5.0, 5.0), (56, 190, 104), size)
        self._hole = Sprite("disc", (2.5, 2.5), (16, 84, 44), size)
        self._disc = Sprite("disc", (RADIUS, RADIUS), (255, 96, 80), size)

    def begin(self, rows: np.ndarray, uniform: np.ndarray) -> None:
        """Start at rest, half a room or more away from the target: at the first of three random places that is, else in
        the farthest corner. Upwind: on the other side of the room."""
        state = self.state
        target = 0.1 + 0.8 * uniform[:, :2]
        if self.upwind:
            target[:, 0], place = 0.8 + 0.2 * uniform[:, 0], 0.05 + 0.9 * uniform[:, 2:4]
            place[:, 0] = 0.2 * uniform[:, 2]
        else:
            place = np.where(target < 0.5, 0.95, 0.05)
            for k in (6, 4, 2):
                other = 0.05 + 0.9 * uniform[:, k : k + 2]
                is_far = _distance(other - target) >= 0.5
                place[is_far] = other[is_far]
        state["tick"][rows] = 0
        state["target"][rows], state["place"][rows], state["speed"][rows] = target, place, 0.0

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tick, place, speed = self.state["tick"], self.state["place"], self.state["speed"]
        tick += 1
        speed *= DAMPING
        speed += THRUST * np.minimum(np.maximum(action, -1.0), 1.0) - self._wind
        place += speed
        hits = (place < 0.0) | (place > 1.0)
        if hits.any():
            # walls swallow the shock
            speed[hits] = 0.0
            np.minimum(np.maximum(place, 0.0, out=place), 1.0, out=place)
        return self._reward(), tick >= STEPS, np.zeros(len(tick), bool)

    def draw(self, images: np.ndarray) -> None:
        # (N, 2) rooms -> units; a disc that touches the wall touches the edge of the picture
        inside = UNITS - 2 * RADIUS
        target, place = RADIUS + inside * self.state["target"], RADIUS + inside * self.state["place"]
        self._ring.paste(images, target[:, 0], target[:, 1])
        self._hole.paste(images, target[:, 0], target[:, 1])
        self._disc.paste(images, place[:, 0], place[:, 1])

    def expert(self) -> np.ndarray:
        """(N, 2) on each axis the highest speed from which full braking still comes to rest at the target."""
        off = self.state["target"] - self.state["place"]
        far = np.abs(off)
        most = np.stack([np.interp(far[:, i], self._stopping[i], _SPEEDS) for i in range(2)], 1)
        return np.clip((np.sign(off) * most - DAMPING * self.state["speed"] + self._wind) / THRUST, -1.0, 1.0)

    def _reward(self) -> np.ndarray:
        far = np.maximum(_distance(self.state["target"] - self.state["place"]) - NEAR, 0.0) / MARGIN
        return np.exp(np.log(0.1) * far * far).astype(np.float32)


def _distance(x: np.ndarray) -> np.ndarray:
    return np.sqrt(x[:, 0] * x[:, 0] + x[:, 1] * x[:, 1])


def _stopping_distances(speed: np.ndarray, braking: float) -> np.ndarray:
    """How far a disc still goes that moves by ``speed`` now and is braked by ``braking`` in each step from then on."""
    total = np.zeros_like(speed)
    while speed.any():
        total += speed
        speed = np.maximum(DAMPING * speed - braking, 0.0)
    return total


_SPEEDS = np.linspace(0.0, THRUST / (1 - DAMPING), 401)
