"""A study: arms x rounds x seeds."""

FORMATS = ("png", "svg", "pdf")  # of its figures
