"""Bayesian after the fact: conversion of trained agents, and calibration of their posteriors."""
