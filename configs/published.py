"""Published results by preset and task: what a preset answers to. Training-episode returns, mean over seeds.

DMC and Atari100k figures were recomputed from the per-episode logs that ship with danijar/dreamerv3 (commit e3f0224;
2023 figures from commit 423291a): the mean over seeds of each seed's mean over the last window.
"""

from __future__ import annotations

DMC_VISION_2024: dict[str, float] = {
    "acrobot_swingup": 230.0, "ball_in_cup_catch": 972.0, "cartpole_balance": 994.0,
    "cartpole_balance_sparse": 970.0, "cartpole_swingup": 860.0, "cartpole_swingup_sparse": 758.0,
    "cheetah_run": 836.0, "finger_spin": 589.0, "finger_turn_easy": 883.0, "finger_turn_hard": 905.0,
    "hopper_hop": 227.0, "hopper_stand": 902.0, "pendulum_swingup": 738.0, "quadruped_run": 612.0,
    "quadruped_walk": 809.0, "reacher_easy": 953.0, "reacher_hard": 855.0, "walker_run": 685.0,
    "walker_stand": 975.0, "walker_walk": 960.0,
}
"""DreamerV3 2024, 64 x 64 pixels, action repeat 2, ratio 512, size12m, window ending at 1M frames."""

DMC_PROPRIO_2023: dict[str, float] = {
    "acrobot_swingup": 134.0, "ball_in_cup_catch": 962.0, "cartpole_balance": 990.0,
    "cartpole_balance_sparse": 990.0, "cartpole_swingup": 852.0, "cartpole_swingup_sparse": 491.0,
    "cheetah_run": 614.0, "finger_spin": 931.0, "finger_turn_easy": 793.0, "finger_turn_hard": 889.0,
    "hopper_hop": 113.0, "hopper_stand": 576.0, "pendulum_swingup": 788.0, "reacher_easy": 954.0,
    "reacher_hard": 938.0, "walker_run": 649.0, "walker_stand": 964.0, "walker_walk": 936.0,
}
"""DreamerV3 2023 (nobody published the 2024 algorithm on proprio), action repeat 2, ratio 512, 460k to 490k frames."""

DMC_PROPRIO_TDMPC2: dict[str, float] = {
    "acrobot_swingup": 518.0, "ball_in_cup_catch": 986.0, "cartpole_balance": 975.0,
    "cartpole_balance_sparse": 1000.0, "cartpole_swingup": 876.0, "cartpole_swingup_sparse": 842.0,
    "cheetah_run": 844.0, "dog_run": 170.0, "dog_stand": 799.0, "dog_trot": 500.0, "dog_walk": 494.0,
    "finger_spin": 986.0, "finger_turn_easy": 918.0, "finger_turn_hard": 975.0, "fish_swim": 690.0,
    "hopper_hop": 338.0, "hopper_stand": 954.0, "humanoid_run": 185.0, "humanoid_stand": 664.0,
    "humanoid_walk": 628.0, "pendulum_swingup": 819.0, "quadruped_run": 938.0, "quadruped_walk": 956.0,
    "reacher_easy": 983.0, "reacher_hard": 981.0, "walker_run": 842.0, "walker_stand": 991.0, "walker_walk": 980.0,
}
"""TD-MPC2 from state, action repeat 2, mean of 3 seeds at 1M frames (commit e9f5932)."""

DMC_PROPRIO_TDMPC2_100K: dict[str, float] = {
    "acrobot_swingup": 179.0, "ball_in_cup_catch": 981.0, "cartpole_balance": 998.0,
    "cartpole_balance_sparse": 1000.0, "cartpole_swingup": 839.0, "cartpole_swingup_sparse": 0.0,
    "cheetah_run": 519.0, "dog_run": 27.0, "dog_stand": 147.0, "dog_trot": 12.0, "dog_walk": 35.0,
    "finger_spin": 948.0, "finger_turn_easy": 488.0, "finger_turn_hard": 484.0, "fish_swim": 205.0,
    "hopper_hop": 14.0, "hopper_stand": 28.0, "humanoid_run": 1.0, "humanoid_stand": 6.0, "humanoid_walk": 1.0,
    "pendulum_swingup": 724.0, "quadruped_run": 239.0, "quadruped_walk": 487.0, "reacher_easy": 937.0,
    "reacher_hard": 414.0, "walker_run": 723.0, "walker_stand": 981.0, "walker_walk": 962.0,
}
"""The same at 100k frames, the first point of its curves."""

DMC_VISION_TDMPC2: dict[str, float] = {
    "acrobot_swingup": 241.0, "cartpole_swingup_sparse": 790.0, "cheetah_run": 537.0, "finger_spin": 985.0,
    "finger_turn_easy": 821.0, "finger_turn_hard": 866.0, "quadruped_run": 283.0, "quadruped_walk": 324.0,
    "reacher_easy": 982.0, "reacher_hard": 910.0, "walker_run": 672.0, "walker_walk": 940.0,
}
"""TD-MPC2 from 64 x 64 pixels, three frames, action repeat 2, mean of 3 seeds at 1M frames."""

ATARI100K_2024: dict[str, float] = {
    "alien": 1117.7, "amidar": 97.5, "assault": 683.5, "asterix": 1062.0, "bank_heist": 397.8,
    "battle_zone": 20300.0, "boxing": 82.1, "breakout": 9.7, "chopper_command": 2222.0, "crazy_climber": 86225.0,
    "demon_attack": 577.2, "freeway": 0.0, "frostbite": 3377.0, "gopher": 2160.0, "hero": 13354.2,
    "jamesbond": 540.0, "kangaroo": 2643.3, "krull": 8171.0, "kung_fu_master": 25900.0, "ms_pacman": 1520.7,
    "pong": -4.0, "private_eye": 3237.8, "qbert": 2921.4, "road_runner": 19230.0, "seaquest": 962.0,
    "up_n_down": 46910.0,
}
"""DreamerV3 2024, ratio 128, size200m, episodes that end between 390k and 400k frames."""

ATARI100K_2023: dict[str, float] = {
    "alien": 1095.8, "amidar": 142.9, "assault": 638.0, "asterix": 982.8, "bank_heist": 617.8,
    "battle_zone": 12800.0, "boxing": 67.8, "breakout": 18.9, "chopper_command": 420.0, "crazy_climber": 71620.0,
    "demon_attack": 545.0, "freeway": 0.0, "frostbite": 1108.4, "gopher": 5828.7, "hero": 10964.7,
    "jamesbond": 510.0, "kangaroo": 3550.0, "krull": 8012.0, "kung_fu_master": 29420.0, "ms_pacman": 1388.5,
    "pong": 18.5, "private_eye": 1124.0, "qbert": 3117.9, "road_runner": 14036.7, "seaquest": 582.0,
    "up_n_down": 9234.0,
}
"""DreamerV3 2023, ratio 1024, at 400k frames."""

ATARI_200M_2024: dict[str, float] = {
    "pong": 20.3, "boxing": 99.6, "breakout": 377.0, "freeway": 33.3, "ms_pacman": 21935.0, "krull": 67362.0,
    "qbert": 184053.0, "enduro": 2152.0, "space_invaders": 14628.0,
}
"""DreamerV3 2024, sticky actions, 96 x 96 grey, at 200M frames (the games whose figures we hold)."""


def answer(table: dict[str, float], task: str, what: str) -> str:
    """One sentence: the table, and this task's figure in it."""
    figure = table.get(task)
    return f"{what}: {figure:g} for {task}" if figure is not None else f"{what}: no figure for {task}"
