"""The report of a run: page, figures, tables and the sentences that read them."""
