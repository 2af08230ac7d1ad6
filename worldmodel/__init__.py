"""World models learned from pixels, and the agents and planners that consume their rollouts."""

import os as _os

# Idle OpenMP workers must sleep, not spin: a spinning barrier beside environment workers makes training on a few
# CPU cores several times slower. It has to be set before torch is imported; a user's own setting wins.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
