"""RL Zoo's programs with our algorithms, environments and search spaces: training from YAML files.

Needs ``rl_zoo3`` (``pip install "sb3-laplace[zoo]"``), which is imported only here.
"""
