"""Divide a number among players by Shapley's rule, exactly or by complete permutations.

Legend: p players, S sets of players, K independent estimates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial

import numpy as np
import numpy.typing as npt

Sets = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

EXACT_PLAYERS = 10  # up to here all sets are valued, 1,024 of them
NUM_SETS = 1024  # that are valued, about, where there are more players
LEAST_PAIRS = 6  # of permutations; fewer give no error worth a name


@dataclass(frozen=True, slots=True)
class Division:
    """Shares of the players.

    Attributes
    ----------
    estimates
        (K, p) estimates, each of which sums to the value of all players less that of none; one row
        where they are exact.
    none
        Value of the empty set.
    """

    estimates: Values
    none: float


def divide(value: Callable[[Sets], Values], num_players: int, whole: float, seed: int) -> Division:
    """Divide the value of all players among them.

    A share is the mean, over the orders in which players may join, of what the player adds when it
    joins. Where not all orders are taken, they are drawn, each with its reverse, so that every
    player stands early as often as late; each order sums to the whole by itself.

    Parameters
    ----------
    value
        Values (S,) of sets (S, p).
    num_players
        p, at least 1.
    whole
        Value of all players, which is not asked for.
    seed
        Of the orders.
    """
    if num_players <= EXACT_PLAYERS:
        return _exact(value, num_players, whole)
    num_pairs = max(LEAST_PAIRS, NUM_SETS // (2 * num_players))
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(num_players) for _ in range(num_pairs)])
    orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, num_players)
    place = np.argsort(orders, axis=1)
    # Set t of an order has the players that stand at places below t.
    inner = np.arange(1, num_players)
    sets = (place[:, None, :] < inner[None, :, None]).reshape(-1, num_players)
    nothing = np.zeros((1, num_players), bool)
    values = value(np.concatenate([nothing, sets]))
    none = float(values[0])
    steps = np.full((len(orders), num_players + 1), none)
    steps[:, 1:-1] = values[1:].reshape(len(orders), -1)
    steps[:, -1] = whole
    shares = np.take_along_axis(np.diff(steps, axis=1), place, axis=1)
    return Division(shares.reshape(num_pairs, 2, num_players).mean(1), none)


def _exact(value: Callable[[Sets], Values], num_players: int, whole: float) -> Division:
    codes = np.arange(2**num_players)
    sets = (codes[:, None] >> np.arange(num_players) & 1).astype(bool)
    values = np.append(value(sets[:-1]), whole)
    size = sets.sum(1)
    orders = factorial(num_players)
    weight = np.array(
        [factorial(k) * factorial(num_players - k - 1) / orders for k in range(num_players)]
    )
    shares = np.empty(num_players)
    for player in range(num_players):
        without = ~sets[:, player]
        added = values[codes[without] | 1 << player] - values[without]
        shares[player] = (weight[size[without]] * added).sum()
    return Division(shares[None], float(values[0]))
