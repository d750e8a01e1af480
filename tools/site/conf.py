"""Sphinx's settings; `tools/site/build.py` writes the pages. No page loads anything from another server."""

from importlib.metadata import version as version_of

project = "prograd_fast"
author = "The prograd_fast developers"
copyright = author
version = release = version_of("prograd-fast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.site.sphinx_parts"]
exclude_patterns = ["files"]

# ---- pages in Markdown, as GitHub shows them
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_dmath_allow_digits = False  # "$5" is money
highlight_language = "text"

# ---- the reference, from docstrings in Google style
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # types stand in the signature
python_maximum_signature_line_length = 88
toc_object_entries = False  # each public name has a heading; with methods each page of the site would carry thousands
add_module_names = False

# ---- HTML
html_theme = "furo"
html_title = "prograd_fast"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "tango"
pygments_dark_style = "monokai"
