"""The mean of a run's last iterates (stochastic weight averaging, Izmailov et al. 2018)."""
from __future__ import annotations

import contextlib
from typing import Dict, Iterator, List

import paddle

from ppsr2q.core.parameters import ParameterGroup


class IterateAverage:
    """Running mean of the parameters over the iterates after ``start`` updates.

    Args:
        groups: the trained parameters.
        start: updates before the first iterate that counts.

    Attributes:
        count: iterates in the mean; 0: none yet, and the mean is the parameters themselves.
    """

    def __init__(self, groups: List[ParameterGroup], start: int) -> None:
        self._parameters = {f"{group.name}/{name}": parameter for group in groups
                            for name, parameter in group.parameters.items()}
        self._start = start
        self._mean: Dict[str, paddle.Tensor] = {}
        self.count = 0

    def add(self, iteration: int) -> None:
        """Take in the iterate after ``iteration`` updates, if it counts."""
        if iteration <= self._start:
            return
        self.count += 1
        with paddle.no_grad():
            for name, parameter in self._parameters.items():
                mean = self._mean.get(name)
                self._mean[name] = parameter.clone() if mean is None else mean + (parameter - mean) / self.count

    def state(self) -> Dict[str, paddle.Tensor]:
        """The mean by parameter name, empty before it has begun."""
        return dict(self._mean)

    def restore(self, mean: Dict[str, paddle.Tensor], count: int) -> None:
        """Go on from a :meth:`state` and its ``count``."""
        self._mean, self.count = dict(mean), count

    def apply(self) -> None:
        """Set the parameters to the mean."""
        for name, mean in self._mean.items():
            self._parameters[name].set_value(mean)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are the mean within the block, and themselves again after it."""
        kept = {name: self._parameters[name].numpy().copy() for name in self._mean}
        self.apply()
        try:
            yield
        finally:
            for name, value in kept.items():
                self._parameters[name].set_value(value)
