"""One dial for model size: widths by name, and Dreamer configurations made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import DreamerConfig
from worldmodel.agents.values.twohot import TwoHotValueConfig
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.rssm import RSSMConfig
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.models.latent import LatentModelConfig
from worldmodel.models.objectives.barlow import BarlowConfig
from worldmodel.models.objectives.infonce import InfoNCEConfig
from worldmodel.models.objectives.reconstruction import ReconstructionConfig
from worldmodel.nn.decoders import ConvDecoderConfig, PatchDecoderConfig
from worldmodel.nn.encoders import ConvEncoderConfig, PatchEncoderConfig

Size = Literal["nano", "1m", "12m", "25m", "50m", "100m", "200m", "400m"]
Version = Literal["2023", "2024", "main"]
Objective = Literal["reconstruction", "barlow", "infonce"]
Core = Literal["rssm", "mamba", "transformer"]

OBJECTIVES: dict[str, Any] = {
    "reconstruction": ReconstructionConfig(),
    "barlow": BarlowConfig(),
    "infonce": InfoNCEConfig(),
}


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of one model size (DreamerV3, table "model sizes")."""

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int


SIZES: dict[str, Widths] = {
    "1m": Widths(deter=512, hidden=64, classes=4, depth=4, units=64),
    "12m": Widths(deter=2048, hidden=256, classes=16, depth=16, units=256),
    "25m": Widths(deter=3072, hidden=384, classes=24, depth=24, units=384),
    "50m": Widths(deter=4096, hidden=512, classes=32, depth=32, units=512),
    "100m": Widths(deter=6144, hidden=768, classes=48, depth=48, units=768),
    "200m": Widths(deter=8192, hidden=1024, classes=64, depth=64, units=1024),
    "400m": Widths(deter=12288, hidden=1536, classes=96, depth=96, units=1536),
}


CORES: dict[Core, Callable[[Widths], Any]] = {
    "rssm": lambda w: RSSMConfig(deter=w.deter, hidden=w.hidden, classes=w.classes),
    # three blocks of this width have about as many parameters as the RSSM
    "mamba": lambda w: MambaConfig(
        d_model=2 * w.hidden, layers=3, headdim=min(64, w.hidden // 2), classes=w.classes, hidden=w.hidden,
        img_layers=2, obs_layers=1,
    ),
    # and so have two of these
    "transformer": lambda w: TransformerConfig(
        width=2 * w.hidden, layers=2, heads=max(2, w.hidden // 32), ffn=4 * w.hidden, classes=w.classes,
        hidden=w.hidden, img_layers=2, obs_layers=1,
    ),
}
"""The core of each size, by name."""

NANO_CORES: dict[Core, Any] = {
    "rssm": RSSMConfig(deter=128, hidden=64, stoch=16, classes=8, blocks=4, logit_scale=5.0),
    "mamba": MambaConfig(
        d_model=128, layers=1, headdim=32, stoch=16, classes=8, hidden=64, img_layers=1, obs_layers=1, logit_scale=5.0
    ),
    "transformer": TransformerConfig(
        width=128, layers=2, heads=4, ffn=256, window=16, stoch=16, classes=8, hidden=64, img_layers=1, obs_layers=1,
        logit_scale=5.0,
    ),
}


def dreamer(
    size: Size, *, version: Version = "2024", objective: Objective = "reconstruction", core: Core = "rssm",
    **changes: Any,
) -> DreamerConfig:
    """A Dreamer of a named size, with any core. ``changes`` replace fields of DreamerConfig.

    Versions: "2024" is the published algorithm (arXiv v2, Nature). "main" is the reference implementation as of 2026:
    its discrete policies ignore the 1 % of uniform actions. "2023" takes from the first version what its published
    numbers hang on (KL weight 0.5, no critic loss on replay, continuous policies by backpropagation through the
    dynamics) in the networks and with the optimiser of 2024; it is not a reproduction of that code.
    """
    model, units = _nano(objective, core) if size == "nano" else _sized(SIZES[size], objective, version, core)
    actor = ActorConfig(units=units, unimix=0.0 if version == "main" else 0.01)
    value = TwoHotValueConfig(units=units)
    base: dict[str, Any] = {"model": model, "actor": actor, "value": value}
    if version == "2023":
        base["replay_value_scale"] = 0.0
    if size == "nano":
        base |= {"lr": 1e-3, "warmup": 100}
    return DreamerConfig(**(base | changes))


def _sized(w: Widths, objective: Objective, version: Version, core: Core) -> tuple[LatentModelConfig, int]:
    model = LatentModelConfig(
        encoder=ConvEncoderConfig(depth=w.depth, units=w.units),
        decoder=ConvDecoderConfig(depth=w.depth, units=w.units),
        core=CORES[core](w),
        objective=OBJECTIVES[objective],
        units=w.units,
        dyn_scale=0.5 if version == "2023" else 1.0,
    )
    return model, w.units


def _nano(objective: Objective, core: Core) -> tuple[LatentModelConfig, int]:
    """For CPUs: matrix products only, patches instead of convolutions."""
    units = 64
    model = LatentModelConfig(
        encoder=PatchEncoderConfig(patch=4, width=16, units=128, layers=2),
        decoder=PatchDecoderConfig(patch=4, width=16, units=128, layers=2),
        core=NANO_CORES[core],
        objective=OBJECTIVES[objective],
        units=units,
        # A reconstruction loss sums over pixels: a picture of 32 x 32 has a quarter of 64 x 64, and so has the price of
        # what is kept of it.
        rep_scale=0.025,
    )
    return model, units
