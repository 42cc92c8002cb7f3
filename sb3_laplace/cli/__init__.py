"""The command line ``sb3-laplace``."""
