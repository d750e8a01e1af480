"""The site: the pages of `docs/`, a page for each method and the reference, as HTML (`make docs`)."""
