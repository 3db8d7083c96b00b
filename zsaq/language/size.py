"""What a student may take, in the place of bits for every layer."""

import math
import re
from dataclasses import dataclass
from typing import Final, final

FORM: Final = re.compile(r"(\d{1,2}(?:\.\d{1,6})?)?(?:a(8|16))?(?:g([1-9]\d{0,4}))?", re.ASCII)


@final
@dataclass(frozen=True)
class Size:
    """Bytes as a function of the model: `bits` for each of its weights, or `megabytes` (of 10^6 bytes) in all.
    `inputs`: bits of what goes into the layers, 16 for floats; `group`: entries that share a scale."""

    bits: float | None = None
    megabytes: float | None = None
    inputs: int = 16
    group: int | None = None

    @classmethod
    def of(cls, config: object, target_mb: object = None) -> "Size | None":
        """A size as it is, from a text of bits such as `3.2`, `3.2a8`, `3.2g32`, or from megabytes, beside which a text
        may say the rest (`a8`, `g32`); None for a configuration of another kind. Raises ValueError for megabytes that
        cannot be, and for a size that is given twice."""
        if isinstance(config, Size) and target_mb is None:
            return config
        match = FORM.fullmatch(config.strip().lower()) if isinstance(config, str) else None
        if target_mb is None:
            if match is None or match[1] is None:
                return None
            return cls(float(match[1]), None, int(match[2] or 16), int(match[3]) if match[3] else None)
        number = target_mb if isinstance(target_mb, int | float) and not isinstance(target_mb, bool) else 0
        if not 0 < number < math.inf:
            raise ValueError(f"target_mb is {target_mb!r}; give the megabytes that the student may take, such as 100")
        if config is not None and (match is None or match[1] is not None):
            raise ValueError(
                f"target_mb chooses the bits of each layer, and {config!r:.80} gives them: leave one off; beside "
                "target_mb a text may say the rest, as in a8 or a8g32"
            )
        inputs, group = (None, None) if match is None else match.group(2, 3)
        return cls(None, float(number), int(inputs or 16), int(group) if group else None)

    def __str__(self) -> str:
        return "".join((
            f"{self.megabytes:g}MB" if self.bits is None else f"{self.bits:g}",
            "" if self.inputs == 16 else f"a{self.inputs}", "" if self.group is None else f"g{self.group}",
        ))  # fmt: skip

    def bytes(self, weights: int) -> int:
        """For a model of so many weights."""
        return int(weights * self.bits / 8 if self.bits is not None else 1e6 * (self.megabytes or 0))
