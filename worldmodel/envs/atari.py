"""Atari games on the Arcade Learning Environment, with the two protocols of DreamerV3 (arXiv 2301.04104v2, appendix).

One decision is ``repeat`` raw frames of the same action. The observation is the pixelwise maximum of the last two raw
RGB frames (some games draw half of their objects on odd frames), then Pillow's bilinear resize, then grey where asked.
The order matters: other orders, and other resize filters, give other pixels.

Choices that other code bases make differently, and why we chose as we did:

* Reaching ``max_frames`` is a truncation, ``is_last`` and not ``is_terminal``: a time limit is not a death, and the
  continuation head must not learn it as one.
* The first observation of an episode shows its own first screen only; nothing of the previous episode takes part in
  the maximum. Likewise an episode that ends inside a repeat shows its very last frame, alone.
* ``lives="reset"`` ends the episode at a lost life (``is_last`` and ``is_terminal``) and the next ``reset`` plays on in
  the same game; ``max_frames`` counts over the whole game. A life loss that is terminal without ending the episode
  does not exist here: ``is_terminal`` without ``is_last`` would contradict itself in replay.

``ale_py.AtariVectorEnv`` is deliberately not used, though with equal seeds it plays the same games (rewards and lengths
agree step by step). In ale-py 0.12.1 it takes the maximum of grey frames rather than of colours, resizes by OpenCV's
area filter, never draws the last frame of an episode (it leaves the repeat before it captures the screen, so the final
observation is a copy of the one before), draws 0 to ``noop_max - 1`` no-ops, and cannot be copied, which would cost
exact resume. Per core it is about as fast as this class, since emulation dominates.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodel.errors import EnvError, unknown
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec, EnvStep

GRAY_WEIGHTS = (0.299, 0.587, 1.0 - (0.299 + 0.587))
"""Luma of red, green, blue (ITU-R BT.601), written so that a grey of any brightness stays what it is."""

_TWO_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})
"""ROMs that ale-py ships for its multi-agent users and that the one-player emulator refuses."""

RANDOM_AND_HUMAN: dict[str, tuple[float, float]] = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "chopper_command": (811.0, 7387.8),
    "crazy_climber": (10780.5, 35829.4),
    "demon_attack": (152.1, 1971.0),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "hero": (1027.0, 30826.4),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kung_fu_master": (258.5, 22736.3),
    "ms_pacman": (307.3, 6951.6),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "road_runner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "up_n_down": (533.4, 11693.2),
}
"""The 26 games of Atari100k: mean returns of a random agent and of a human tester, as the Dreamer tables use them."""


@functools.cache
def _rom_folder() -> Path | None:
    """The ROMs inside the ale-py wheel, found without importing it; None where it is not installed."""
    found = importlib.util.find_spec("ale_py")
    return None if found is None or found.origin is None else Path(found.origin).parent / "roms"


@functools.cache
def games() -> list[str]:
    """Names of the games that can be played, sorted; empty where ale-py is not installed."""
    folder = _rom_folder()
    return [] if folder is None else sorted({rom.stem for rom in folder.glob("*.bin")} - _TWO_PLAYERS)


def game_name(task: str) -> str:
    """The ROM name of a game, whatever its spelling: "RoadRunner", "road_runner" and "Road Runner" are one game.

    Raises:
        EnvError: no such game is bundled with ale-py.
    """
    if not games():
        raise EnvError(f"cannot play {task!r}: ale-py and its ROMs are not installed; run `pip install ale-py`")
    by_letters = {_letters(game): game for game in games()}
    if _letters(task) not in by_letters:
        raise EnvError(unknown("Atari game", task, games()))
    return by_letters[_letters(task)]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True, kw_only=True)
class AtariConfig:
    """One Atari game under a stated protocol; the defaults are Atari100k.

    >>> AtariConfig.atari100k("RoadRunner").name
    'atari/road_runner/100k'
    >>> AtariConfig.atari100k("pong", actions="full", noops=0).name
    'atari/pong/100k/actions=full,noops=0'
    """

    task: str = "boxing"
    """Any spelling of a bundled game, see :func:`games`."""
    protocol: Literal["100k", "200m"] = "100k"
    """The published protocol that the results answer to. It only names them: every setting is a field below, and
    ``name`` lists those that depart from the protocol. The constructors set them all."""
    size: int = 64
    """Height and width of the observation, pixels."""
    color: Literal["rgb", "gray"] = "rgb"
    """(size, size, 3) or (size, size, 1)."""
    repeat: int = 4
    """Raw frames per decision."""
    sticky: float = 0.0
    """Probability that a raw frame repeats the previous action instead (Machado et al. 2018)."""
    actions: Literal["minimal", "full"] = "minimal"
    """The game's own buttons, or all 18 for every game."""
    noops: int = 30
    """At the start of a game, 0 to ``noops`` raw frames of doing nothing, uniformly drawn."""
    lives: Literal["unused", "reset"] = "unused"
    """What a lost life does: nothing, or end the episode (see the module)."""
    max_frames: int = 108_000
    """Raw frames, no-ops not counted, after which a game is truncated: half an hour at 60 Hz."""

    def __post_init__(self) -> None:
        for field, low in (("size", 8), ("repeat", 1), ("noops", 0), ("max_frames", 1)):
            if getattr(self, field) < low:
                raise ValueError(f"AtariConfig.{field} must be at least {low}, got {getattr(self, field)}")
        if not 0.0 <= self.sticky < 1.0:
            raise ValueError(f"AtariConfig.sticky must be a probability in [0, 1), got {self.sticky}")
        for field, known in (
            ("protocol", PROTOCOLS),
            ("color", ("rgb", "gray")),
            ("actions", ("minimal", "full")),
            ("lives", ("unused", "reset")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"AtariConfig.{field} must be one of {list(known)}, got {getattr(self, field)!r}")
        if games():
            game_name(self.task)

    @classmethod
    def atari100k(cls, task: str = "boxing", **changes: Any) -> AtariConfig:
        """64x64 RGB, no sticky actions, the game's own buttons, up to 30 no-ops: 400k frames are 100k decisions.

        The 2024 paper's own runs used ``actions="full", noops=0``.
        """
        return replace(cls(task=task, protocol="100k", **PROTOCOLS["100k"]), **changes)

    @classmethod
    def atari200m(cls, task: str = "boxing", **changes: Any) -> AtariConfig:
        """96x96 grey, sticky actions with probability 0.25, all 18 buttons, up to 30 no-ops."""
        return replace(cls(task=task, protocol="200m", **PROTOCOLS["200m"]), **changes)

    @property
    def name(self) -> str:
        """The game, the protocol, and each departure from that protocol."""
        settings = PROTOCOLS[self.protocol]
        departures = [f"{key}={getattr(self, key)}" for key in settings if getattr(self, key) != settings[key]]
        return "/".join(["atari", game_name(self.task), self.protocol] + ([",".join(departures)] if departures else []))

    def build(self, index: int = 0) -> Atari:
        """Load the game. Raises EnvError where ale-py is missing or refuses the ROM."""
        return Atari(self)


PROTOCOLS: dict[str, dict[str, Any]] = {
    protocol: {**{f.name: f.default for f in fields(AtariConfig) if f.name not in ("task", "protocol")}, **changes}
    for protocol, changes in {
        "100k": {},
        "200m": {"size": 96, "color": "gray", "sticky": 0.25, "actions": "full"},
    }.items()
}
"""The settings of each published protocol."""


class Atari:
    """One game: ``specs.Env`` and ``specs.Clones``; a copied state continues bit for bit, sticky actions included."""

    def __init__(self, config: AtariConfig) -> None:
        self._config = config
        self._rom, self._ale = _new_emulator(config)
        self._seed(None)
        self._frames = 0
        self._lives = 0
        self._needs_reset = True
        codes = self._ale.getMinimalActionSet() if config.actions == "minimal" else self._ale.getLegalActionSet()
        self._codes = list(codes)
        height, width = self._ale.getScreenDims()
        # The last two raw frames; _newest says which of them is the last.
        self._screens = np.zeros((2, height, width, 3), np.uint8)
        self._newest = 0
        channels = 3 if config.color == "rgb" else 1
        figures = RANDOM_AND_HUMAN.get(game_name(config.task))
        self._spec = EnvSpec(
            name=config.name,
            obs={"image": ArraySpec(shape=(config.size, config.size, channels), dtype="uint8")},
            action=ActionSpec(kind="discrete", size=len(self._codes)),
            repeat=config.repeat,
            max_steps=-(-config.max_frames // config.repeat),
            reference={} if figures is None else {"random": figures[0], "human": figures[1]},
        )

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def actions(self) -> list[str]:
        """What each index of the one-hot action presses: ["NOOP", "FIRE", ...]."""
        return [code.name for code in self._codes]

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a game, or play on after a lost life under ``lives="reset"``; a seed always starts a new game."""
        if seed is not None:
            self._seed(seed)
        if seed is not None or not self._life_lost:
            self._start_game()
        self._life_lost = False
        self._needs_reset = False
        self._lives = self._ale.lives()
        self._show_only_now()
        return EnvStep(obs=self._observe(), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        """Hold one button, a one-hot (A,), for ``repeat`` raw frames. Raises EnvError before the first reset, after
        ``is_last``, and for an action of another size."""
        if self._needs_reset:
            raise EnvError(f"{self._spec.name}: step was called before reset or after is_last; call reset first")
        if np.shape(action) != (len(self._codes),):
            raise EnvError(
                f"{self._spec.name}: an action must be a one-hot of shape ({len(self._codes)},), got {np.shape(action)}"
            )
        code = self._codes[int(np.argmax(action))]
        reward, is_terminal, is_last = 0.0, False, False
        for frame in range(self._config.repeat):
            reward += self._ale.act(code)
            self._frames += 1
            if frame >= self._config.repeat - 2:
                self._capture()
            is_terminal = self._ale.game_over(with_truncation=False) or self._has_lost_life()
            is_last = is_terminal or self._frames >= self._config.max_frames
            if is_last:
                if frame < self._config.repeat - 1:
                    self._show_only_now()
                break
        self._needs_reset = is_last
        return EnvStep(obs=self._observe(), reward=reward, is_last=is_last, is_terminal=is_terminal)

    def render(self) -> np.ndarray | None:
        """The last raw screen, uint8 (210, 160, 3)."""
        return self._screens[self._newest].copy()

    def get_state(self) -> dict[str, Any]:
        """The emulator with its random stream, our counters, the two screens of the maximum and the no-op stream."""
        return {
            "name": self._spec.name,
            "ale": self._ale.cloneState(include_rng=True).serialize(),
            "screens": self._screens[[self._newest, 1 - self._newest]],
            "rng": self._rng.bit_generator.state,
            "frames": self._frames,
            "lives": self._lives,
            "needs_reset": self._needs_reset,
            "life_lost": self._life_lost,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where ``get_state`` was called, in this or another process. Raises EnvError for a state of another
        game or protocol."""
        import ale_py

        if state["name"] != self._spec.name:
            raise EnvError(f"the state belongs to {state['name']!r}, not to {self._spec.name!r}; build that one")
        self._ale.restoreState(ale_py.ALEState(state["ale"]))
        self._screens[:] = state["screens"]
        self._newest = 0
        self._rng.bit_generator.state = state["rng"]
        self._frames, self._lives = int(state["frames"]), int(state["lives"])
        self._needs_reset, self._life_lost = bool(state["needs_reset"]), bool(state["life_lost"])

    def close(self) -> None:
        """The emulator holds nothing but memory, which goes with this object."""

    def _seed(self, seed: int | None) -> None:
        """Reseed the no-op stream and the emulator's; the emulator takes a seed only while it loads a ROM."""
        noops, emulator = np.random.SeedSequence(seed).generate_state(2)
        self._rng = np.random.default_rng(int(noops))
        self._ale.setInt("random_seed", int(emulator) % (2**31 - 1) + 1)
        self._ale.loadROM(str(self._rom))
        self._life_lost = False

    def _start_game(self) -> None:
        self._ale.reset_game()
        for _ in range(self._rng.integers(self._config.noops + 1)):
            self._ale.act(0)
            if self._ale.game_over(with_truncation=False):
                self._ale.reset_game()
        self._frames = 0

    def _has_lost_life(self) -> bool:
        """Whether a life just went, others are left, and that ends an episode here."""
        if self._config.lives == "unused":
            return False
        before, self._lives = self._lives, self._ale.lives()
        has_lost = 0 < self._lives < before
        # A game whose time is up is not played on.
        self._life_lost = has_lost and self._frames < self._config.max_frames
        return has_lost

    def _capture(self) -> None:
        self._newest = 1 - self._newest
        self._ale.getScreenRGB(self._screens[self._newest])

    def _show_only_now(self) -> None:
        """Forget older frames: the maximum of a picture with itself is itself."""
        self._capture()
        self._screens[1 - self._newest] = self._screens[self._newest]

    def _observe(self) -> dict[str, np.ndarray]:
        from PIL import Image

        size = self._config.size
        frame = np.maximum(self._screens[0], self._screens[1])
        image = np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
        if self._config.color == "gray":
            red, green, blue = GRAY_WEIGHTS
            # (size, size, 3) -> (size, size, 1), rounded down
            image = (image[..., :1] * red + image[..., 1:2] * green + image[..., 2:] * blue).astype(np.uint8)
        return {"image": image}


def _new_emulator(config: AtariConfig) -> tuple[Path, Any]:
    """The ROM's path and a silent emulator that still has to load it. Loading a ROM that the emulator does not know
    would end the process, so it is asked first."""
    game, folder = game_name(config.task), _rom_folder()
    try:
        import ale_py
    except ImportError as error:
        raise EnvError(f"cannot play {game}: ale-py does not load ({error}); run `pip install ale-py`") from error
    rom = (folder or Path()) / f"{game}.bin"
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    if ale_py.ALEInterface.isSupportedROM(str(rom)) is None:
        raise EnvError(f"{rom} is damaged or not a game that ale-py {ale_py.__version__} knows; reinstall ale-py")
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", config.sticky)
    return rom, emulator
