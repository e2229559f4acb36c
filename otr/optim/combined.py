"""Several optimizers, each with its own parameters, that are used and saved as one."""

from collections import defaultdict
from typing import Any

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps all parts. Its parameter groups are those of the parts, and its state holds theirs.

    Args:
        parts: optimizers without a common parameter that have not yet taken a step.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_with_parts()

    def step(self, closure: Any = None) -> Any:
        """Take a step of each part; the closure, if any, computes the loss once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and state, as `load_state_dict` does, in the parts too."""
        super().__setstate__(state)
        self._share_with_parts()

    def _share_with_parts(self) -> None:
        """Let the parts use these groups and this state, so that both can't differ."""
        self.state = defaultdict(dict, self.state)
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
