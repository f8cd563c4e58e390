"""Comparisons, statistics, the exact oracle, figures."""
