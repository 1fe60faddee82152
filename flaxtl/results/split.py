"""`flaxtl split`: a source dealt out to folders or folds, and the table of what went where."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flaxtl import cache
from flaxtl.data import sources, split_files
from flaxtl.terminal import advancing, printable, screenful, table


def into_folders(
    source: str, output: Path, fractions: str, seed: int, near_duplicates: int, link: bool, console: Console
) -> Table:
    """As `split_files.write_folders`; what the user should know goes to `console`. Returns pictures by class, split."""
    parts = split_files.fractions_of(fractions)
    listing = sources.find(source, cache.directory("data"))
    with advancing(console, "splitting", 2 * len(listing.found)) as advance:
        counts = split_files.write_folders(
            listing,
            output,
            parts,
            seed,
            near_duplicates=near_duplicates,
            link=link,
            say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
    return _table([split for split, part in parts.items() if part > 0], counts)


def into_folds(source: str, output: Path, k: int, seed: int, near_duplicates: int, console: Console) -> Table:
    """As `split_files.write_folds`; what the user should know goes to `console`. Returns pictures by class and fold."""
    listing = sources.find(source, cache.directory("data"))
    with advancing(console, "splitting", len(listing.found)) as advance:
        counts = split_files.write_folds(
            listing,
            output,
            k,
            seed,
            near_duplicates=near_duplicates,
            say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
    return _table([f"fold {number}" for number in range(1, k + 1)], counts)


def _table(splits: Sequence[str], counts: Counter[tuple[str, str]]) -> Table:
    def row(name: str, numbers: Sequence[int]) -> list[str]:
        return [printable(name), *(f"{n:,}" for n in (*numbers, sum(numbers)))]

    classes = sorted({label for label, _ in counts})
    cells = [row(label, [counts[label, split] for split in splits]) for label in classes]
    totals = row("all", [sum(counts[label, split] for label in classes) for split in splits])
    return table("Pictures", ("class", *splits, "all"), [*screenful(cells, " classes"), totals])
