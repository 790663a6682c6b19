"""The command `python -m elite_pl.report`, from finished runs to tables, figures and one page."""
