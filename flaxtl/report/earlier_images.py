"""Keep the images of an earlier report that cannot be read again, because the files were moved or deleted."""

import re
from collections import defaultdict

_SHOWN = re.compile(r'<div class="images" title="([^"]*)">.*?</div>', re.DOTALL)
_MISSING = re.compile(r'<div class="missing" title="([^"]*)">[^<]*</div>')
_AUGMENTATION = re.compile(r'<section id="augmentation".*?</section>', re.DOTALL)
_FOLLOWING = '<section id="data"'


def keep_images(page: str, earlier: str) -> str:
    """Return a report with the images of an earlier one in the places where its own are missing.

    Photos are found by folder and file name, with their heat maps, unless two different ones share them; the section
    on augmentation is kept as a whole, if the earlier one shows more.

    Args:
        page: HTML of the new report.
        earlier: HTML of the earlier report of the same run.
    """
    shown: dict[str, set[str]] = defaultdict(set)
    for match in _SHOWN.finditer(earlier):
        shown[match[1]].add(match[0])
    unique = {title: next(iter(images)) for title, images in shown.items() if len(images) == 1}
    page = _MISSING.sub(lambda match: unique.get(match[1], match[0]), page)
    new, old = (next(iter(_AUGMENTATION.findall(text)), "") for text in (page, earlier))
    if old.count("<figure") > new.count("<figure"):
        page = page.replace(new, old, 1) if new else page.replace(_FOLLOWING, f"{old}\n\n{_FOLLOWING}", 1)
    return page
