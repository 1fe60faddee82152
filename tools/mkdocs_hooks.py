"""What mkdocs asks for while it builds the site: the pages that the code writes itself. See mkdocs.yml."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import commands, configs, lecture, networks


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no one has to write."""
    pages = {
        "notebook.md": lecture.page(Path(config.docs_dir) / "lecture.ipynb"),
        "reference/commands.md": commands.page(),
        "reference/networks.md": networks.page(),
        "reference/config.md": configs.page(),
    }
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files
