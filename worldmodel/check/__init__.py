"""Conformance tests for parts of your own, as Gymnasium's ``check_env`` is for environments.

>>> from worldmodel.check import check_value_learner
>>> from worldmodel.agents.values.twohot import TwoHotValueConfig
>>> check_value_learner(TwoHotValueConfig(units=16, layers=1)).require().passed
True
"""

from worldmodel.check.core import check_core
from worldmodel.check.env import check_env
from worldmodel.check.objective import check_objective
from worldmodel.check.planner import check_planner
from worldmodel.check.report import ConformanceError, Finding, Report
from worldmodel.check.samples import make_spec
from worldmodel.check.target import check_target
from worldmodel.check.value import check_value_learner
from worldmodel.check.world_model import check_world_model

__all__ = [
    "ConformanceError", "Finding", "Report", "check_core", "check_env", "check_objective", "check_planner",
    "check_target", "check_value_learner", "check_world_model", "make_spec",
]
