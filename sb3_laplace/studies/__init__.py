"""Studies: many runs of several agents on several tasks with several seeds, their evaluations, and what they say.

Needs ``submitit`` and ``rl_zoo3`` (``pip install "sb3-laplace[study]"``), which are imported only when a study is run.
"""
