"""One measured figure and the bound it is held against."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """A value, what it should be, and how it was measured; a value of None says in `how` why there is none."""

    value: float | None
    bound: float | None
    better: Literal["lower", "higher"]
    unit: str
    how: str

    @property
    def missed(self) -> bool:
        """Whether the value was measured and lies on the wrong side of its bound."""
        if self.value is None or self.bound is None:
            return False
        return self.value > self.bound if self.better == "lower" else self.value < self.bound

    def as_dict(self) -> dict[str, object]:
        """The form in which it is written."""
        return asdict(self)

    def line(self, name: str) -> str:
        """A row of the table on the screen."""
        value = "null" if self.value is None else f"{self.value:.4g}"
        sign = "≤" if self.better == "lower" else "≥"
        bound = "" if self.bound is None else f"{sign} {self.bound:g}"
        return f"{name:28} {value:>10} {self.unit:8} {bound:10} {'MISSED' if self.missed else '':7} {self.how}"
