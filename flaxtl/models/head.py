"""The head: the new classifier on top of a backbone."""

from dataclasses import dataclass

from flaxtl.errors import UserError, unknown
from flaxtl.models.net import Net
from flaxtl.models.tracer import Skipped, Value

POOLINGS = ("none", "average_2x2", "global_average", "global_max")


@dataclass(frozen=True)
class Head:
    """Pooling, hidden dense layers with relu and dropout, and a softmax.

    The layers are named `pool`, `flatten`, `dense_1`, `dropout_1`, ... and `predictions`.

    Attributes:
      num_classes: number of outputs.
      pooling: one of POOLINGS.
      units: units of the hidden layers.
      dropout: rate of the dropout after each hidden layer, in [0, 1).

    Raises:
      UserError: a value is out of range.
    """

    num_classes: int
    pooling: str = "average_2x2"
    units: tuple[int, ...] = (128,)
    dropout: float = 0.4

    def __post_init__(self) -> None:
        """Check the values."""
        if self.pooling not in POOLINGS:
            raise unknown("head pooling", self.pooling, POOLINGS)
        if not 0 <= self.dropout < 1:
            raise UserError(f"head.dropout is {self.dropout}. It must be at least 0 and less than 1.")
        if not all(isinstance(units, int) and units >= 1 for units in self.units):
            raise UserError(f"head.units is {self.units}. Every hidden layer needs an integer number of units >= 1.")

    def build(self, net: Net, x: Value) -> Value:
        """Run the layers: features [batch, height, width, channels] -> float32 probabilities [batch, num_classes].

        A ViT's features are its class token, [batch, channels], or, cut earlier, [batch, tokens, channels].
        """
        if self.pooling == "average_2x2":
            if not isinstance(x, Skipped):
                _check_features(x.shape[1:])
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


def _check_features(shape: tuple[int, ...]) -> None:
    """Raise UserError unless features of that shape, without batch, have windows of 2x2."""
    if len(shape) != 3:
        raise UserError(
            "The backbone returns tokens, not the features of an image that head.pooling=average_2x2 needs. "
            "Choose global_average, which keeps a single token as it is."
        )
    if min(shape[:2]) < 2:
        raise UserError(
            f"The backbone returns {shape[0]}x{shape[1]} features, too few for head.pooling=average_2x2. "
            "Choose global_average, or larger images (data.height, data.width)."
        )
