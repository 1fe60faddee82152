"""The head: the new classifier on top of a backbone."""

from dataclasses import dataclass
from numbers import Real

from flaxtl.errors import UserError, unknown
from flaxtl.models.net import Net
from flaxtl.models.tracer import Skipped, Value

POOLINGS = ("none", "average_2x2", "global_average", "global_max")

NORMALIZATIONS = ("none", "l2", "layer_norm", "standardize", "batch_norm")

FEATURES = "flatten"
"""The head's layer with the features of an image, [batch, features], before they are normalized."""

NORMALIZE = "normalize"
"""The layer that normalizes the features. With 'standardize' its statistics are those of the training images."""


@dataclass(frozen=True)
class Head:
    """Pooling, normalization of the features, hidden dense layers with relu and dropout, and the logits.

    The layers are named `pool`, `flatten`, `normalize`, `dense_1`, `dropout_1`, ... and `predictions`; the dropout of a
    head without hidden layers is called `dropout`.

    Attributes:
      num_classes: number of outputs.
      pooling: one of POOLINGS.
      units: units of the hidden layers.
      dropout: rate of the dropout after each hidden layer or, without hidden layers, of the features, in [0, 1).
      normalize: one of NORMALIZATIONS: 'l2' divides the features of each image by their length, 'layer_norm' subtracts
        their mean and divides by their standard deviation; both have no parameters. 'standardize' does so for each
        feature by its fixed mean and standard deviation over the training images, 'batch_norm' by those of a batch.

    Raises:
      UserError: a value is out of range.
    """

    num_classes: int
    pooling: str = "average_2x2"
    units: tuple[int, ...] = (128,)
    dropout: float = 0.4
    normalize: str = "none"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.pooling not in POOLINGS:
            raise unknown("head pooling", str(self.pooling), POOLINGS)
        if self.normalize not in NORMALIZATIONS:
            raise unknown("head.normalize", str(self.normalize), NORMALIZATIONS)
        if not (isinstance(self.dropout, Real) and 0 <= self.dropout < 1):
            raise UserError(f"head.dropout is {self.dropout!r}. It must be a number of at least 0 and less than 1.")
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
        x = net.flatten(x, name=FEATURES)
        if self.normalize == "l2":
            x = net.unit_norm(x, name=NORMALIZE)
        elif self.normalize == "layer_norm":
            x = net.layer_norm(x, name=NORMALIZE, use_params=False)
        elif self.normalize == "standardize":
            x = net.standardize(x, name=NORMALIZE)
        elif self.normalize == "batch_norm":
            x = net.batch_norm(x, name=NORMALIZE)
        for number, units in enumerate(self.units, start=1):
            x = net.dense(x, units, act="relu", name=f"dense_{number}")
            if self.dropout:
                x = net.dropout(x, self.dropout, name=f"dropout_{number}")
        if self.dropout and not self.units:
            x = net.dropout(x, self.dropout, name="dropout", trains_with="predictions")
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
