"""What `make docs` adds to the pages in docs/: the reference that is made from the schema (a hook of mkdocs)."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools.docs.recipe_reference import reference


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs once it has found the pages."""
    files.append(File.generated(config, "reference/recipes.md", content=reference()))
    return files
