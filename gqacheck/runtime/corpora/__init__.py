"""Where the texts of perplexity come from: what was asked for, data files, data sets, wikitext's own forms."""
