"""One seed for a pool, one for each of its environments."""

from __future__ import annotations

import numpy as np


def env_seed(seed: int, index: int) -> int:
    """The seed of environment ``index`` in a pool that was given ``seed``: below 2**32, and the same for any number of
    environments and any kind of pool.

    It is drawn from child ``index`` of ``np.random.SeedSequence(seed)``, as ``spawn`` makes them.

    >>> env_seed(0, 0) == int(np.random.SeedSequence(0).spawn(3)[0].generate_state(1)[0])
    True
    """
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0])
