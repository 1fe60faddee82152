"""Keep the images of an earlier report that cannot be read again, because the files were moved or deleted."""

import re
from collections import defaultdict

_THUMBNAIL = re.compile(r'<img src="data:[^"]*" alt="[^"]*, (?:predicted|suggested class) [^"]*" title="([^"]*)">')
_MISSING = re.compile(r'<div class="missing" title="([^"]*)">[^<]*</div>')
_FOLLOWING = '<section id="data"'


def keep_images(page: str, earlier: str) -> str:
    """Return a report with the images of an earlier one in the places where its own are missing.

    Thumbnails are found by folder and file name, unless two of the earlier ones share them; the sections of heat maps
    and augmentation are kept as a whole, if the earlier ones show more.

    Args:
        page: HTML of the new report.
        earlier: HTML of the earlier report of the same run.
    """
    thumbnails: dict[str, dict[str, str]] = defaultdict(dict)
    for match in _THUMBNAIL.finditer(earlier):
        thumbnails[match[1]].setdefault(match[0].split('"', 2)[1], match[0])
    unique = {title: next(iter(tags.values())) for title, tags in thumbnails.items() if len(tags) == 1}
    page = _MISSING.sub(lambda match: unique.get(match[1], match[0]), page)
    for name in ("heatmaps", "augmentation"):
        new, old = _section(page, name), _section(earlier, name)
        if old.count("<figure") > new.count("<figure"):
            page = page.replace(new, old, 1) if new else page.replace(_FOLLOWING, f"{old}\n\n{_FOLLOWING}", 1)
    return page


def _section(page: str, name: str) -> str:
    """Return the HTML of a section; "" if the page does not have it."""
    match = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    return match[0] if match else ""
