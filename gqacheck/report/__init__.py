"""Reports: ``Report`` values rendered as text (plain, or on a terminal through rich) and as JSON."""
