"""A report that is written again keeps the images that it can no longer read."""

from flaxtl.report.earlier_images import keep_images
from flaxtl.report.templating import load_template

SHOWN = '<img src="data:{data}" alt="Image of {label}, predicted b" title="{title}">'
MISSING = '<div class="missing" title="{title}">image not found</div>'


def section(name, *tags):
    return f'<section id="{name}">{" ".join(tags)}</section>'


def test_keep_images_fills_in_earlier_thumbnails():
    earlier = " ".join(
        (
            SHOWN.format(data="1", label="a", title="a/1.jpg"),
            SHOWN.format(data="1", label="a", title="a/1.jpg"),  # the same image in two galleries
            SHOWN.format(data="2", label="a", title="a/&lt;b&gt;.jpg"),
            SHOWN.format(data="3", label="a", title="a/3.jpg"),
            SHOWN.format(data="4", label="b", title="a/3.jpg"),  # two files of that name
        )
    )
    titles = ["a/&lt;b&gt;.jpg", "a/1.jpg", "a/3.jpg", "a/4.jpg"]
    page = " ".join(MISSING.format(title=title) for title in titles)
    expected = [
        SHOWN.format(data="2", label="a", title=titles[0]),
        SHOWN.format(data="1", label="a", title=titles[1]),
        MISSING.format(title=titles[2]),
        MISSING.format(title=titles[3]),
    ]
    assert keep_images(page, earlier) == " ".join(expected)


def test_keep_images_keeps_sections_with_more_figures():
    heatmaps, augmentation = (
        section("heatmaps", "<figure><img 1></figure>", "<figure><img 2></figure>"),
        section("augmentation", "<figure><img 3></figure>"),
    )
    earlier, data = heatmaps + augmentation + section("data", "old"), section("data", "new")
    assert (
        keep_images(section("heatmaps", "<figure><img 1></figure>") + data, earlier)
        == f"{heatmaps}{augmentation}\n\n{data}"
    )
    newer = (
        section("heatmaps", "<figure><img 4></figure>", "<figure><img 5></figure>")
        + section("augmentation", "<figure><img 6></figure>")
        + data
    )
    assert keep_images(newer, earlier) == newer


def test_gallery_has_the_tags_that_keep_images_finds():
    image = {"uri": "", "problem": "image not found", "short_path": 'a/"1".jpg', "name": "1.jpg", "true": "a, b"}
    image |= {"predicted": "c", "confidence": 0.5, "loss": 1.0}
    gallery = load_template("parts.html.jinja").module.gallery
    for is_suggestion in (False, True):
        shown, missing = (str(gallery([image | {"uri": uri}], is_suggestion=is_suggestion)) for uri in ("data:x", ""))
        assert 'src="data:x"' not in missing
        assert keep_images(missing, shown) == shown
