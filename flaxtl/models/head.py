"""The new classifier on top of a base."""

from dataclasses import dataclass

from flaxtl.errors import UserError, unknown
from flaxtl.models.net import Net
from flaxtl.models.tracer import Skipped, Value

POOLINGS = ("none", "average_2x2", "global_average", "global_max")


@dataclass(frozen=True)
class Head:
    """Pooling, hidden layers with relu and dropout, and a softmax over `num_classes` classes.

    Layers are named `pool`, `flatten`, `dense_1`, `dropout_1`, ... and `predictions`.
    """

    num_classes: int
    pooling: str = "average_2x2"
    units: tuple[int, ...] = (128,)
    dropout: float = 0.4

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.pooling not in POOLINGS:
            raise unknown("head pooling", self.pooling, POOLINGS)
        if not 0 <= self.dropout < 1:
            raise UserError(f"head.dropout is {self.dropout}; it must be at least 0 and below 1")
        if not all(isinstance(units, int) and units >= 1 for units in self.units):
            raise UserError(f"head.units is {self.units}; every hidden layer needs a whole number of units, 1 or more")

    def build(self, net: Net, x: Value) -> Value:
        """[batch, height, width, channels] features -> [batch, classes] float32 probabilities."""
        if self.pooling == "average_2x2":
            if not isinstance(x, Skipped) and min(x.shape[1:3]) < 2:
                raise UserError(
                    f"the base ends in {x.shape[1]}x{x.shape[2]} features, too few for head.pooling=average_2x2: "
                    "choose global_average, or larger images (data.height, data.width)"
                )
            x = net.average_pool(x, 2, name="pool")
        elif self.pooling == "global_average":
            x = net.global_average_pool(x, name="pool")
        elif self.pooling == "global_max":
            x = net.global_max_pool(x, name="pool")
        x = net.flatten(x, name="flatten")
        for number, units in enumerate(self.units, start=1):
            x = net.dense(x, units, act="relu", name=f"dense_{number}")
            x = net.dropout(x, self.dropout, name=f"dropout_{number}")
        return net.dense(x, self.num_classes, act="softmax", name="predictions")
