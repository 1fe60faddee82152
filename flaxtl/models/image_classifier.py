"""A classifier as a plain Flax module, images -> logits, for training loops other than flaxtl's own."""

import jax
from flax import linen as nn

from flaxtl.models.classifier import Classifier, list_layers
from flaxtl.models.spec import Groups


class ImageClassifier(nn.Module):
    """Images to logits, with the parameters of a `Classifier` directly below it.

    Attributes:
      classifier: the model; its preprocessing is part of the call.
    """

    classifier: Classifier

    def setup(self) -> None:
        """Put the classifier's parameters into this module's own scope."""
        nn.share_scope(self, self.classifier)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return float32 logits [batch, classes].

        Args:
          images: RGB [batch, height, width, 3] with values 0..255, uint8 or float.
          train: run batch norms and dropout in training mode. Needs `rngs={"dropout": key}` and, if the model has batch
            norms, `mutable=["batch_stats"]`.
        """
        if not train:
            logits = self.classifier(images).logits
        else:
            names = frozenset(
                layer.name for layer in list_layers(self.classifier.clone(parent=None), *images.shape[1:3])
            )
            keys = jax.random.split(self.make_rng("dropout"), len(images))
            logits = self.classifier(images, train_layers=names, dropout_keys=keys).logits
        assert logits is not None, "the forward pass is not stopped before the logits"
        return logits

    @property
    def default_groups(self) -> Groups:
        """The rules of the usual parameter groups: head, last block, rest of the backbone."""
        return self.classifier.spec.groups
