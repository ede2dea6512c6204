"""Sphinx configuration: ``make docs``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "pyro_vae"
copyright = "the authors of pyro_vae"
version = release = installed_version("pyro-vae")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "site_pages",
]
exclude_patterns = ["_build", "tutorials", "generated/tutorials/*.ipynb"]
html_theme = "furo"
html_title = f"pyro_vae {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
smartquotes = False

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
copybutton_prompt_text = ">>> "

# Docstrings
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
maximum_signature_line_length = 88

# A reference to a name of this package that does not exist is an error. Names of other libraries
# would need their inventories, which a build without a network cannot have.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_vae\b).*"),
]

# Tutorials: scripts that run during the build. A script that fails fails the build.
sphinx_gallery_conf = {
    "examples_dirs": ["tutorials"],
    "gallery_dirs": ["generated/tutorials"],
    "filename_pattern": r".*\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
    "parallel": 2,
}
suppress_warnings = ["config.cache"]
