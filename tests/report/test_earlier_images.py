"""A report that is written again keeps the images that it can no longer read."""

from dataclasses import replace

from flaxtl.report.earlier_images import keep_images
from flaxtl.report.photos import ClassHeatmap, Photo
from flaxtl.report.templating import load_template

SHOWN = (
    '<li style="--aspect: 1.5"><figure>\n<div class="images" title="{title}">'
    '<img src="data:{data}" alt="Image of {label}, predicted b"></div></figure></li>'
)
MISSING = '<li style="--aspect: 1.333"><figure><div class="missing" title="{title}">not found</div></figure></li>'


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


def test_keep_images_keeps_augmentation_with_more_figures():
    augmentation = section("augmentation", "<figure><img 3></figure>")
    earlier, data = augmentation + section("data", "old"), section("data", "new")
    assert keep_images(data, earlier) == f"{augmentation}\n\n{data}"
    newer = section("augmentation", "<figure><img 6></figure>") + data
    assert keep_images(newer, earlier) == newer


def test_keep_images_keeps_heat_maps_with_their_legend():
    photo = SHOWN.replace("Image of", "Heat map for").format(data="1", label="a", title="a/1.jpg")
    page = f'<div class="legend">no heat maps</div> {MISSING.format(title="a/1.jpg")}'
    assert keep_images(page, f'<div class="legend">dark to bright</div> {photo}') == (
        f'<div class="legend">dark to bright</div> {photo}'
    )


def test_gallery_has_the_tags_that_keep_images_finds():
    heatmap = ClassHeatmap("c", 0.5, "data:y", "the top")
    photo = Photo("data:x", "", 1.5, "1.jpg", 'a/"1".jpg', "a, b", "c", 0.5, 1.0, "c", (heatmap,))
    gallery = load_template("parts.html.jinja").module.gallery
    unread = replace(photo, uri="", problem="image not found", aspect=1.333, heatmaps=())
    shown, missing = (str(gallery([each])) for each in (photo, unread))
    assert 'src="data:x"' in shown
    assert 'src="data:x"' not in missing
    assert keep_images(missing, shown) == shown
