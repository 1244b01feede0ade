"""Reference pruners for GQA models. None is in this version; the package keeps their place and their command."""
