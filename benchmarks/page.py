"""Put the reports of the bench into the documentation: ``python -m benchmarks.page results/<folder>``.

In ``docs/evaluation.md`` every suite has a block between ``<!-- suite: name -->`` and ``<!-- /suite -->``.
The blocks of suites in the folder are replaced, the others stay, and new ones go before ``<!-- more suites
-->``. The text between ``<!-- not measured -->`` and ``<!-- /not measured -->`` names the suites without a
block. Plots and grids are copied to ``images/evaluation`` beside the page. The block ``<!-- figures -->`` of
the README shows the drawings of two suites.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from benchmarks.bench.suite import suite_names
from layered_core.errors import LayeredError
from layered_core.formats.pictures import write_whole

_END = "<!-- more suites -->"

TELLING = {
    "layout": ("layout.svg", "Layout by method: IoU, right object and colour, leakage, harmony"),
    "collage_ladder": (
        "collage_ladder_curve.svg",
        "Harmony against fidelity over the noise sweep of a collage",
    ),
}
"""Suites of which the README shows a drawing: the drawing's file and caption."""


def block(folder: Path, suite: str, images: Path) -> str:
    """Return the block of one suite and copy its pictures to ``images``."""
    text = (folder / f"{suite}.md").read_text(encoding="utf-8").strip()
    title, _, body = text.partition("\n")
    pictures = []
    for kind, says in (
        ("_grid", "the first scenes, not chosen, by method"),
        ("_curve", "the curve"),
        ("", "means and 95 % intervals"),
    ):
        # Drawings are SVG, grids of pictures are JPEG.
        source = folder / f"{suite}{kind}.{'jpg' if kind == '_grid' else 'svg'}"
        if source.is_file():
            images.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, images / source.name)
            pictures.append(f"![{title.strip('# ')}: {says}](images/{images.name}/{source.name})")
    head, found, differences = body.strip().partition("Paired differences")
    if found:
        table, _, provenance = differences.rpartition("\n\n")
        folded = f"<details><summary>Paired differences</summary>\n\nPaired differences{table}\n\n</details>"
        body = f"{head}{folded}\n\n{provenance}"
    return (
        f"<!-- suite: {suite} -->\n\n#{title}\n\n{body.strip()}\n\n"
        + "\n\n".join(pictures)
        + "\n\n<!-- /suite -->"
    )


def update(page: Path, folder: Path) -> list[str]:
    """Replace the blocks of every suite with a report in ``folder`` and return their names.

    Raises:
        LayeredError: there is no report, or the page lacks the mark for new suites.
    """
    suites = sorted(p.stem for p in folder.glob("*.md"))
    if not suites:
        raise LayeredError(
            f"there is no report in {str(folder)!r}. Run 'layered bench all --out {folder}' first"
        )
    text = page.read_text(encoding="utf-8")
    if _END not in text:
        raise LayeredError(f"page {str(page)!r} has no line '{_END}'. Add it where new suites should go")
    for suite in suites:
        new = block(folder, suite, page.parent / "images" / page.stem)
        old = re.search(rf"<!-- suite: {re.escape(suite)} -->.*?<!-- /suite -->", text, re.S)
        text = (
            text[: old.start()] + new + text[old.end() :] if old else text.replace(_END, f"{new}\n\n{_END}")
        )
    missing = [s for s in suite_names() if f"<!-- suite: {s} -->" not in text]
    text = _between(text, "not measured", f"Not measured yet: {', '.join(missing)}." if missing else "")
    write_whole(page, lambda file: file.write(text.encode()))
    return suites


def update_readme(readme: Path, folder: Path, page: Path) -> list[str]:
    """Show the drawings of the :data:`TELLING` suites with the commands that made them, if ``folder`` has
    reports of all of them. Return their names, or nothing."""
    reports = {suite: folder / f"{suite}.json" for suite in TELLING}
    if not all(r.is_file() for r in reports.values()):
        return []
    images, link = (
        (page.parent / x).relative_to(readme.parent).as_posix() for x in (f"images/{page.stem}", page.name)
    )
    made = {suite: json.loads(r.read_text(encoding="utf-8"))["provenance"] for suite, r in reports.items()}
    shown = [
        f"![{says}]({images}/{name})\n\n*{made[suite]}: means and 95 % intervals over scenes.*"
        for suite, (name, says) in TELLING.items()
    ]
    shown.append(f"[{link}]({link}) explains the figures and names the weak points.")
    text = _between(readme.read_text(encoding="utf-8"), "figures", "\n\n".join(shown))
    write_whole(readme, lambda file: file.write(text.encode()))
    return list(TELLING)


def _between(text: str, mark: str, new: str) -> str:
    """Return ``text`` with ``new`` between ``<!-- mark -->`` and ``<!-- /mark -->``; unchanged without these
    marks."""
    wanted = f"<!-- {mark} -->\n\n{new}\n\n<!-- /{mark} -->" if new else f"<!-- {mark} -->\n<!-- /{mark} -->"
    return re.sub(rf"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: wanted, text, flags=re.S)


def main() -> None:
    """Parse the command line and update both pages."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description="Put the bench's reports into the documentation."
    )
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument(
        "page", type=Path, nargs="?", default=Path("docs/evaluation.md"), help="(default: %(default)s)"
    )
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="(default: %(default)s)")
    options = parser.parse_args()
    try:
        print(", ".join(update(options.page, options.folder)))
        shown = update_readme(options.readme, options.folder, options.page)
        unchanged = f"unchanged, because the folder lacks reports of {', '.join(TELLING)}"
        print("README:", ", ".join(shown) or unchanged)
    except (LayeredError, OSError) as error:
        sys.exit(f"benchmarks.page: {error}")


if __name__ == "__main__":
    main()
