import hashlib
import json

from flaxtl.models import imagenet


def test_the_classes_are_those_that_keras_publishes():
    """The MD5 of imagenet_class_index.json in keras/src/applications/imagenet_utils.py."""
    index = {str(number): list(each) for number, each in enumerate(imagenet.imagenet_classes())}
    assert hashlib.md5(json.dumps(index).encode()).hexdigest() == "c2c37ea517e94d9795004a39431a14cb"


def test_an_id_is_unique_and_a_name_is_not():
    classes = imagenet.imagenet_classes()
    assert classes[0] == ("n01440764", "tench")
    assert len({each.wordnet_id for each in classes}) == 1000
    names = [each.name for each in classes]
    assert sorted({name for name in names if names.count(name) > 1}) == ["crane", "maillot"]
