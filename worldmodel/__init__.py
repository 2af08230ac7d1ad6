"""World models learned from pixels, and the agents and planners that consume their rollouts."""

import os as _os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.dreams import dream_env as dream_env
    from worldmodel.dreams import dream_envs as dream_envs
    from worldmodel.runs import load as load

# Idle OpenMP workers must sleep, not spin: a spinning barrier beside environment workers makes training on a few
# CPU cores several times slower. It has to be set before torch is imported; a user's own setting wins.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_LAZY = {
    "load": "worldmodel.runs", "dream_env": "worldmodel.dreams", "dream_envs": "worldmodel.dreams",
}
"""Public names and their modules, which import torch: `import worldmodel` alone does not."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
