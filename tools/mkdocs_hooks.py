"""Hooks of mkdocs (see mkdocs.yml): add the pages that are generated from the code."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import commands, configs, markdown, networks


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "notebook.md": markdown.notebook_page(Path(config.docs_dir) / "lecture.ipynb"),
        "reference/commands.md": commands.page(),
        "reference/networks.md": networks.page(),
        "reference/config.md": configs.page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files
