"""Integrals of an exponential times the polynomial through some points: the weights of exponential integrators."""

from __future__ import annotations

import math

import numpy as np


def weights(nodes: list[float], width: float, rate: float) -> list[float]:
    """Return the integral of `exp(rate * x)` times each node's Lagrange polynomial, over x from 0 to `width`.

    `rate` isn't zero. Computed in float64; the nodes are log-SNRs, relative to the step's start.
    """
    powers = _powers(width, rate, len(nodes))
    found: list[float] = []
    for here, node in enumerate(nodes):
        others = nodes[:here] + nodes[here + 1 :]
        rising = np.atleast_1d(np.poly(others))[::-1] / math.prod(node - other for other in others)
        found.append(float(rising @ powers))
    return found


def _powers(width: float, rate: float, count: int) -> list[float]:
    """The integrals of `exp(rate * x) * x ** power` over x from 0 to `width`, for each power below `count`."""
    if abs(rate * width) < 1:  # where the recursion would cancel: the series
        terms = range(30)
        return [
            math.fsum(
                rate**term / math.factorial(term) * width ** (term + power + 1) / (term + power + 1) for term in terms
            )
            for power in range(count)
        ]
    found = [math.expm1(rate * width) / rate]
    for power in range(1, count):
        found.append((width**power * math.exp(rate * width) - power * found[-1]) / rate)
    return found
