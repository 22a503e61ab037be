"""What a sandbox run is asked to do, where its files are, and the folder that it writes to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from crypto.threshold import least_threshold
from member_node.streams.mapping import StreamMapping
from sandbox.faults import Kill
from sandbox.population import save, simulate
from sandbox.streams import DealtStream, Source, deal, read_source

HERE = Path(__file__).parent
DEFAULT_MAPPING = HERE / "mappings" / "default.toml"
OWN_FOLDERS = ("parties", "logs", "streams", "capture", "log")
OWN_FILES = ("report.html", "report.json", "headline.svg", "rejects.csv")


@dataclass(frozen=True)
class SandboxOptions:
    """What the command line asks for. ``events`` and ``mapping`` None: the seeded population."""

    out: Path
    members: int = 4
    seed: int = 1
    days: int | None = None
    customers: int | None = None
    events: Path | None = None
    mapping: Path | None = None
    capture: bool = False
    kills: tuple[Kill, ...] = ()
    command: str = "subrosa sandbox"

    @property
    def mapping_file(self) -> Path:
        """The mapping asked for, else the population's."""
        return self.mapping or DEFAULT_MAPPING


def clear(out: Path, *, keep: Path | None = None) -> None:
    """Remove what an earlier run left in ``out``, and nothing else; refuse a folder that is not a sandbox's.

    ``keep``: the operator's file of events, which must not lie among what is removed.
    """
    if keep is not None and keep.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{keep} lies in {out}, which is emptied before a run: give another --out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder")
    own = {*OWN_FOLDERS, *OWN_FILES}
    foreign = sorted(each.name for each in out.iterdir() if each.name not in own) if out.exists() else []
    if foreign and not (out / "parties").exists():
        raise ValueError(
            f"{out} holds other files ({foreign[0]}): give an empty folder, or one of an earlier run"
        )
    for name in OWN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in OWN_FILES:
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def companion(folder: str, mapping: StreamMapping) -> Path:
    """The feature spec or rule set that goes with a mapping: the one of its name, else the default."""
    named = HERE / folder / f"{mapping.name}.toml"
    return named if named.exists() else HERE / folder / "default.toml"


def read_or_make(options: SandboxOptions, mapping: StreamMapping) -> Source:
    """Read the operator's file, or generate the population and read that: every row is checked the same way."""
    if options.events is not None:
        source = read_source(options.events, mapping)
        return source if options.days is None else source.first_days(options.days)
    sizes = {"days": options.days, "customers_per_bank": options.customers}
    given = {name: value for name, value in sizes.items() if value is not None}
    population = simulate(options.seed, options.members, **given)
    path, _ = save(population, options.out / "streams" / "all")
    return read_source(path, mapping)


def deal_out(options: SandboxOptions, mapping: StreamMapping, source: Source) -> DealtStream:
    """Deal the rows to the banks; the population brings its public directory along."""
    folder = options.out / "streams"
    directory = None if options.events is not None else folder / "all" / "terminals.txt"
    return deal(source, mapping, options.members, folder, directory=directory)


def configuration(
    options: SandboxOptions, mapping: StreamMapping, dealt: DealtStream
) -> dict[str, str | int | float | bool | None]:
    """What a reader needs to know to judge the figures."""
    return {
        "members": options.members,
        "events": dealt.events,
        "source": "seeded population" if options.events is None else options.events.name,
        "seed": options.seed if options.events is None else None,
        "first day": str(dealt.first_day),
        "last day": str(dealt.last_day),
        "label delay, days": mapping.label_delay_days,
        "threshold": least_threshold(options.members),
        "key shares": "dealt by the sandbox",
        "privacy noise on counts": "off (confirmed frauds over a public directory)",
        "bodies captured": options.capture,
    }
