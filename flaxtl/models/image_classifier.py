"""A model as a plain Flax module, images -> logits or features, for training loops other than flaxtl's own."""

import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import NO_PERTURBATIONS, Classifier, check_input_size, list_layers, param_shapes
from flaxtl.models.spec import Groups
from flaxtl.models.tracer import Layer


class ImageClassifier(nn.Module):
    """Images to logits, with the parameters of a `Classifier` directly below it; preprocessing is part of the call.

    Attributes:
      classifier: the network.
      input_size: height and width in pixels that the model was created for.
      output_layer: layer that the features of a model without a classifier are read from; None: the model has logits.
    """

    classifier: Classifier
    input_size: tuple[int, int]
    output_layer: str | None = None

    def setup(self) -> None:
        """Put the classifier's parameters into this module's own scope."""
        nn.share_scope(self, self.classifier)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        trainable: Iterable[str] | None = None,
        start: str | None = None,
        capture: Iterable[str] = (),
        perturbations: Mapping[str, jax.Array] = NO_PERTURBATIONS,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Return float32 logits [batch, classes], or the features of a model without a classifier.

        Args:
          images: RGB [batch, height, width, 3] with values 0..255, uint8 or float; with `start`, the outputs of that
            layer, such as `extract_features(..., layer=start)` returns.
          train: run batch norms and dropout in training mode. Needs `mutable=["batch_stats"]` if the model has batch
            norms, and `rngs={"dropout": key}` if dropout is active.
          trainable: with `train`, the groups of `default_groups`, or layers, that are trained. All others run in
            inference mode: a frozen batch norm normalizes by its statistics and keeps them, and dropout below it is
            inactive, as in flaxtl's own train step. None: everything is trained.
          start: backbone layer that the call continues above, such as the last one, to train the head on features that
            were computed once. `variables` need only the parameters above it.
          capture: names of layers to return the outputs of, too.
          perturbations: layer name -> array that is added to the output of the layer. The gradient with respect to
            zeros is the gradient with respect to this output (Grad-CAM).

        Returns:
          The logits; with `capture`, the logits and a dict of layer name -> output, in the dtype of the layers.

        Raises:
          UserError: a layer or a group does not exist, images or outputs of `start` have another shape, images are too
            small for the network, or dropout is active and has no key.
        """
        if start is None:
            self._check_images(images)
        else:
            self._check_features(images, start)
        capture = _layer_names("capture", capture)
        output_layers = (self.output_layer,) if self.output_layer else ()
        train_layers, keys = frozenset[str](), None
        if train:
            size = images.shape[1:3] if start is None else self.input_size
            layers = list_layers(self.classifier.clone(parent=None), *size)
            if self.output_layer:  # the head is a placeholder
                layers = [layer for layer in layers if layer.section == "backbone"]
            train_layers = self._train_layers(layers, trainable)
            if self.has_rng("dropout") or self.has_rng("params"):  # Flax's default for streams without a key
                keys = jax.random.split(self.make_rng("dropout"), len(images))
        result = self.classifier(
            images,
            train_layers=train_layers,
            dropout_keys=keys,
            start=start,
            stop=self.output_layer,
            taps=(*output_layers, *capture),
            perturbations=perturbations,
        )
        output = result.taps[self.output_layer].astype(jnp.float32) if self.output_layer else result.logits
        assert output is not None, "without an output layer, the forward pass reaches the logits"
        return (output, {name: result.taps[name] for name in capture}) if capture else output

    def _check_images(self, images: jax.Array) -> None:
        """Check the shape. Of images that are too small, no pixel is left above, and the outputs would be NaN."""
        if images.ndim != 4 or images.shape[3] != 3:
            shape = "x".join(map(str, images.shape)) or "no dimensions"
            raise UserError(f"The model takes RGB images [batch, height, width, 3], but their shape is {shape}.")
        size = images.shape[1:3]
        if not any(map(export.is_symbolic_dim, size)):
            check_input_size(self.classifier.spec, *size)

    def _check_features(self, features: jax.Array, start: str) -> None:
        """Check the shape of the outputs of `start`; if the head is global, they may be of images of another size."""
        layers = list_layers(self.classifier.clone(parent=None), *self.input_size)
        shape = next((layer.shape for layer in layers if layer.name == start), None)
        if shape is None:  # which the forward pass reports
            return
        given, head = features.shape[1:], self.classifier.head
        is_flattened = self.output_layer is None and head is not None and not head.pooling.startswith("global")
        fits = given == shape if is_flattened else (len(given), given[-1:]) == (len(shape), shape[-1:])
        if not fits:
            height, width = self.input_size
            raise UserError(
                f"The outputs of layer {start!r} are [batch, {', '.join(map(str, shape))}] for images of "
                f"{height}x{width}, but the shape of the features is {[*features.shape]}."
            )

    def _train_layers(self, layers: list[Layer], trainable: Iterable[str] | None) -> frozenset[str]:
        """Return the layers in train mode: those of `trainable`, groups or layers; None: all."""
        groups = {layer.name: self._group_of(layer.section, layer.name) for layer in layers}
        if trainable is None:
            return frozenset(groups)
        trainable = _layer_names("trainable", trainable)
        known = {*groups, *groups.values()}
        for name in trainable:
            if name not in known:
                raise unknown("group or layer", name, [*dict.fromkeys(groups.values()), *groups])
        return frozenset(name for name, group in groups.items() if not {name, group}.isdisjoint(trainable))

    def _group_of(self, section: str, layer: str) -> str:
        """Return the default group of a layer; default rules never divide one. Raises UserError if none matches."""
        path, spec = f"{section}/{layer}/", self.classifier.spec
        group = next((group for group, pattern in spec.groups if re.fullmatch(pattern, path)), None)
        if group is None:
            raise UserError(f"No rule in the groups of {spec.name!r} matches {path!r}. Add ('base', 'backbone/.*').")
        return group

    @property
    def default_groups(self) -> Groups:
        """The rules of the usual parameter groups: the head, the last block and the rest of the backbone.

        Those without a parameter are left out: the head of a model that returns features, and the last block of a
        backbone that ends below it.
        """
        shapes = param_shapes(self.classifier.clone(parent=None), *self.input_size)
        if self.output_layer is not None:
            del shapes["head"]  # a placeholder
        groups = {self._group_of(section, layer) for section, layers in shapes.items() for layer in layers}
        return tuple((group, pattern) for group, pattern in self.classifier.spec.groups if group in groups)


def _layer_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple, because an iterator yields them only once. Raises UserError for anything else."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UserError(f"{argument} is {names!r}. Give a sequence of names, such as {argument}=({str(names)!r},).")
    return tuple(names)
