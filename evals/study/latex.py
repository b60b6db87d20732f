"""A study's tables for a paper: LaTeX longtables in the style of booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from evals.table import Table

ESCAPES = str.maketrans(
    {
        **{character: rf"\{character}" for character in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--"},
        **{"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "‖": r"\textbardbl{}"},
    }
)
PORTRAIT = 80  # characters of a line; wider tables are set on pages turned by a quarter
NARROW, BROAD = 5, 30  # characters that a column counts for at least and at most
ROOM = 0.82  # of a line, what the gaps between the columns leave of it


def latex(table: Table) -> str:
    """A table in LaTeX with its caption; it may span pages. Needs \\usepackage{array,booktabs,longtable,pdflscape}."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(" ".join(cell.split()).translate(ESCAPES) for cell in cells) + r" \\"

    lines = [table.columns, *table.rows]
    longest = [max(len(row[column]) for row in lines) for column in range(len(table.columns))]
    wide = sum(longest) > PORTRAIT
    sizes = [min(max(length, NARROW), BROAD) for length in longest]
    broken = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{ROOM * size / sum(sizes):.3f}\linewidth}}" for size in sizes
    )
    columns = broken if wide or table.prose else "l" + "r" * (len(sizes) - 1)
    body = "\n".join(map(line, table.rows))
    match = (
        f"\\begin{{longtable}}{{{columns}}}\n\\caption{{{table.title.translate(ESCAPES)}. {table.note.translate(ESCAPES)}}}\\\\\n"
        f"\\toprule\n{line(table.columns)}\n\\midrule\n\\endhead\n{body}\n\\bottomrule\n\\end{{longtable}}\n"
    )
    small = f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}\n{match}}}\n"
    return f"\\begin{{landscape}}\n{small}\\end{{landscape}}\n" if wide else small
