"""Hooks of mkdocs (see mkdocs.yml): add the pages that are generated from the code."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import commands_page, config_page, networks_page, notebook_page


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
