"""Hooks of mkdocs (see mkdocs.yml): add the pages that are generated from the code; show the navigation earlier."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import commands_page, config_page, networks_page, notebook_page

BREAKPOINTS = {"76.25em": "68em", "76.234375em": "67.984375em"}
"""Window width from which Material shows the list of pages: 1,220 pixels -> 1,088, so that small laptops have it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "notebook.md": notebook_page(Path(config.docs_dir) / "lecture.ipynb"),
        "reference/commands.md": commands_page(),
        "reference/networks.md": networks_page(),
        "reference/config.md": config_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Change the breakpoint in the style sheet and the script of the theme, which has no setting for it."""
    assets = Path(config.site_dir) / "assets"
    for file in (*assets.glob("stylesheets/main.*.css"), *assets.glob("javascripts/bundle.*.js")):
        content = file.read_text(encoding="utf-8")
        if "76.25em" not in content:
            raise LookupError(f"{file.name} of this release of Material has another breakpoint than 76.25em.")
        for old, new in BREAKPOINTS.items():
            content = content.replace(old, new)
        file.write_text(content, encoding="utf-8")
