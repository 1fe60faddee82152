"""Keep the images of an earlier report that cannot be read again, because the files were moved or deleted."""

import re
from collections import defaultdict

_PHOTO = re.compile(
    r'<li style="[^"]*"><figure>\s*<div class="(?P<kind>images|missing)" title="(?P<title>[^"]*)">.*?</figure></li>',
    re.DOTALL,
)
_HEATMAP_LEGEND = re.compile(r'<div class="legend">.*?</div>', re.DOTALL)
_HEATMAP = 'alt="Heat map for '
_AUGMENTATION = re.compile(r'<section id="augmentation".*?</section>', re.DOTALL)
_FOLLOWING = '<section id="data"'


def keep_images(page: str, earlier: str) -> str:
    """Return a report with the images of an earlier one in the places where its own are missing.

    Photos are found by folder and file name, with their heat maps and captions, unless two different ones share them.
    The legend of the heat maps is kept with them; the section on augmentation, if the earlier one shows more.

    Args:
      page: HTML of the new report.
      earlier: HTML of the earlier report of the same run.
    """
    shown: dict[str, set[str]] = defaultdict(set)
    for match in _PHOTO.finditer(earlier):
        if match["kind"] == "images":
            shown[match["title"]].add(match[0])
    unique = {title: next(iter(photos)) for title, photos in shown.items() if len(photos) == 1}

    def keep_photo(match: re.Match[str]) -> str:
        return unique.get(match["title"], match[0]) if match["kind"] == "missing" else match[0]

    had_heatmaps = _HEATMAP in page
    page = _PHOTO.sub(keep_photo, page)
    if _HEATMAP in page and not had_heatmaps and (legend := _HEATMAP_LEGEND.search(earlier)):
        page = _HEATMAP_LEGEND.sub(lambda _: legend[0], page)
    new, old = (next(iter(_AUGMENTATION.findall(text)), "") for text in (page, earlier))
    if old.count("<figure") > new.count("<figure"):
        page = page.replace(new, old, 1) if new else page.replace(_FOLLOWING, f"{old}\n\n{_FOLLOWING}", 1)
    return page
