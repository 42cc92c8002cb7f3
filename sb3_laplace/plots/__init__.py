"""Plots of evaluations, and the report that holds them. Only this folder needs matplotlib."""
