"""Small games seen as pixels, with known optima, thousands of steps per second: to try ideas and to test the engine.

Importing this package registers them with Gymnasium as ``worldmodel/Catch-v0``, ``worldmodel/Glide-v0`` and
``worldmodel/Recall-v0``.
"""

from worldmodel.envs.toys.base import Toy, ToyBatch, ToyConfig, expert
from worldmodel.envs.toys.gym import ToyGym, register

__all__ = ["Toy", "ToyBatch", "ToyConfig", "ToyGym", "expert"]

register()
