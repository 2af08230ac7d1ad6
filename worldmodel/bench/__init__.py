"""How fast the parts of a run are on this machine."""

PARTS = ("update", "envs", "replay", "act")
"""What can be measured of a run."""
KERNELS = "kernels"
"""What is measured without one."""
PLANNERS = "planners"
"""What takes layers instead: returns and latency of planners."""
REACH = "reach"
"""What becomes of agents that bootstrap from where no data is."""
AGAINST = ("update", "replay", "act")
"""What can be measured beside a peer."""
