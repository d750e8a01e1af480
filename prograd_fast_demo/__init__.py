"""The embedded picture sets and models of prograd-fast, as files in `assets/`; the package prograd_fast reads them."""
