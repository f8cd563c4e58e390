"""Baselines to compare a policy with."""
