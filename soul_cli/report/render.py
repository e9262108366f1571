"""A grid as Markdown and as LaTeX."""

from __future__ import annotations

import html
import re
import unicodedata

from soul_cli.core.streams import printable
from soul_cli.report.tables import BEST, LEGEND, SECOND, Cell, Grid, Head, Line, short


def markdown(grid: Grid) -> str:
    """Return caption, table, notes.  The group stands above its first column's title, in the same cell."""
    starts = _starts(grid)
    titles = [f"{md(h.title)} {h.arrow}".strip() for h in grid.heads]
    heads = [f"{md(starts.get(i, '')) or '&nbsp;'}<br>{t}" for i, t in enumerate(titles)]
    lines = ["| method | optimizer | n | " + " | ".join(heads) + " |", "|---|---|---|" + "---|" * len(heads)]
    for line in grid.lines:
        cells = " | ".join(_md_cell(c) for c in line.cells)
        lines.append(f"| {md(line.method)} | {md(line.optim) or '-'} | {line.n or '-'} | {cells} |")
    notes = [f"- Note: {md(n)}." for n in grid.notes]
    return "\n".join([md(grid.caption), md(LEGEND), "", *lines, "", *notes, *([""] if notes else [])])


def _starts(grid: Grid) -> dict[int, str]:
    """Return the first column of each group -> its title."""
    out, at = {}, 0
    for title, span in grid.groups:
        out[at] = title
        at += span
    return out


def _md_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    wrap = {BEST: "**{}**", SECOND: "<ins>{}</ins>"}.get(cell.mark, "{}")
    return wrap.format(cell.text)


def in_one_line(text: str) -> str:
    """Return text with one space for any white space, control characters as escapes."""
    return " ".join(printable(text.replace("\r\n", "\n")).split())


def md(text: str) -> str:
    """Return text that Markdown shows as it is, in one line: no markup, no HTML, no table bars."""
    one = in_one_line(text)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one, quote=False))


# --- LaTeX -------------------------------------------------------------------------------------------------

TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "‖": r"$\Vert$",
    "Δ": r"$\Delta$", "θ": r"$\theta$", "–": "--", "—": "---", "…": r"\ldots{}", "×": r"$\times$", "·": r"$\cdot$",
    "[": "{[}", "*": "{*}",  # after a line break they would be read as its options
    '"': "''", "’": "'", "‘": "`", "“": "``", "”": "''",
}  # fmt: skip
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u0327": "c",
           "\u030c": "v"}  # fmt: skip


def tex(text: str) -> str:
    """Return text that pdflatex sets as it is, with its default fonts; what they do not have is shown as [U+4E2D]."""
    return "".join(map(_tex_char, in_one_line(text)))


def _tex_char(char: str) -> str:
    if char in TEX:
        return TEX[char]
    if " " <= char <= "~":
        return char
    parts = unicodedata.normalize("NFD", char)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return f"\\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(char):04X}]"


def latex(grids: list[Grid]) -> str:
    """Return a document that compiles by itself; each table environment can be copied out of it."""
    tables = "\n".join(map(_tex_table, grids))
    return (
        "\\documentclass{article}\n\\usepackage[landscape,margin=15mm]{geometry}\n"
        f"\\usepackage{{booktabs,graphicx}}\n\\begin{{document}}\n{tables}\\end{{document}}\n"
    )


def _tex_table(grid: Grid) -> str:
    notes = "".join(f" Note: {tex(n)}." for n in grid.notes)
    spans = "".join(f" & \\multicolumn{{{span}}}{{c}}{{{tex(title)}}}" for title, span in grid.groups)
    rules, at = "", 4
    for _, span in grid.groups:
        rules += f"\\cmidrule(lr){{{at}-{at + span - 1}}}"
        at += span
    body = ""
    for before, line in zip((None, *grid.lines), grid.lines, strict=False):
        body += "\\midrule\n" if before and before.reference and not line.reference else ""
        body += _tex_line(line)
    spec = "llr" + "r" * len(grid.heads)
    return (
        f"\\begin{{table}}\n\\caption{{{tex(grid.caption)} {tex(LEGEND)}{notes}}}\n"
        "\\centering\\setlength{\\tabcolsep}{2.5pt}\n"
        f"\\resizebox{{\\linewidth}}{{!}}{{%\n\\begin{{tabular}}{{{spec}}}\n"
        f"\\toprule\n & & {spans} \\\\\n{rules}\n"
        f"method & optimizer & n{''.join(map(_tex_head, grid.heads))} \\\\\n\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}}}\n\\end{{table}}\n"
    )


def _tex_head(head: Head) -> str:
    return f" & {tex(head.title)} {tex(head.arrow)}".rstrip()


def _tex_line(line: Line) -> str:
    cells = "".join(f" & {_tex_cell(c)}" for c in line.cells)
    return f"{tex(line.method)} & {tex(line.optim) or '--'} & {line.n or '--'}{cells} \\\\\n"


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    wrap = {BEST: "\\textbf{{{}}}", SECOND: "\\underline{{{}}}"}.get(cell.mark, "{}")
    spread = "" if cell.sd is None else f"{{\\tiny\\,$\\pm$\\,{cell.spread}}}"
    return wrap.format(short(cell.mean).replace("inf", r"$\infty$")) + spread
