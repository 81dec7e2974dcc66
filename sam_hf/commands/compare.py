"""
Compare methods on your own data: a YAML of variants × seeds × label noise, run in parallel, resumed where it was
stopped, and reported with paired differences and their confidence intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line.parsing import PlainParser, run
from ..errors import UsageError

if TYPE_CHECKING:
    from ..compare.plan import Plan, Run
    from ..compare.records import Records


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(sys.argv[1:] if argv is None else argv)

    from ..compare.read import read_plan
    from ..compare.records import Records

    plan = read_plan(options.plan)
    if options.dry_run:
        return _list(plan, options.only)
    if options.only is not None:
        _check_only(plan, options.only)
    if options.output_dir is None:
        raise UsageError("--output_dir is missing: the folder of the results, where a stopped comparison goes on")
    if options.output_dir.is_file():
        raise UsageError(f"output_dir={options.output_dir} is a file: it must be a folder")
    records = Records(options.output_dir / "runs")
    try:
        _carry_out(plan, records, options)
    except KeyboardInterrupt:
        print(f"stopped: the same command goes on with {options.output_dir}", file=sys.stderr)
        sys.exit(130)
    failed = _report(plan, records, options.output_dir)
    if failed:
        sys.exit(1)


def make_parser() -> PlainParser:
    parser = PlainParser(
        prog="sam-hf compare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("plan", metavar="FILE", help="YAML of the comparison: see docs/compare.md")
    parser.add_argument("--output_dir", type=Path, help="folder of the results; finished runs in it are not run again")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, help="threads of a run; default: the cores shared out among the jobs")
    parser.add_argument("--only", metavar="NAME", action="append", help="run this variant only; may be repeated")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and stop")
    parser.add_argument("--retry", action="store_true", help="run failed ones again")
    parser.add_argument("--keep_models", action="store_true", help="leave the trained weights in OUTPUT_DIR/models")
    return parser


def _options(argv: Sequence[str]) -> argparse.Namespace:
    options = make_parser().parse_args(list(argv))
    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} is not allowed: it must be at least 1")
    if options.threads is None:
        options.threads = max(1, (os.cpu_count() or 1) // options.jobs)
    return options


def _check_only(plan: Plan, only: Sequence[str]) -> None:
    for name in only:
        if name not in plan.variants:
            raise UsageError(f"--only {name}: there is {', '.join(plan.variants)}")


def _list(plan: Plan, only: Sequence[str] | None) -> None:
    if only is not None:
        _check_only(plan, only)
    search = _wanted(plan.selection_runs(), only)
    open_ = {v.name: len(v.grid) for v in plan.variants.values() if len(v.grid) > 1 and (not only or v.name in only)}
    final = _wanted(plan.final_runs({}), only)
    for one in [*search, *final]:
        print(one.name)
    later = len(open_) * len(plan.label_noise) * len(plan.seeds)
    print(
        f"{len(search)} runs of the search, {len(final) + later} to report"
        + (f", {later} of them with what the search will choose" if later else "")
    )


def _wanted(runs: Sequence[Run], only: Sequence[str] | None) -> list[Run]:
    """Each run once, though several variants may ask for it, and those of `only` alone."""
    if only is not None:
        runs = [one for one in runs if one.variant in only]
    return list({one.key: one for one in runs}.values())


def _carry_out(plan: Plan, records: Records, options: argparse.Namespace) -> None:
    """The search, then the runs to report, so that what is stopped among these has whole seeds, of every variant."""
    from tqdm.auto import tqdm

    from ..compare.pool import Pool, visible_devices
    from ..compare.records import FAILED, FINISHED
    from ..compare.search import choices, search_results
    from ..compare.worker import WorkerSettings

    begun: set[str] = set()  # a run that fails is not run again by the command it failed in
    settings = WorkerSettings(options.output_dir, 0, options.threads, None, options.keep_models)
    with Pool(options.jobs, settings, visible_devices()) as pool:
        for stage in ("search", "final"):
            chosen = choices(search_results(plan, records))
            runs = plan.selection_runs() if stage == "search" else plan.final_runs(chosen)
            runs = [one for one in _wanted(runs, options.only) if _is_due(records, one, options.retry)]
            runs = [one for one in runs if one.key not in begun]
            begun |= {one.key for one in runs}
            if not runs:
                continue
            with tqdm(total=len(runs), unit="run", desc=stage) as bar:

                def done(one: Run, content: dict[str, Any], bar: Any = bar) -> None:
                    record = records.add(one, content)
                    if record["status"] == FINISHED and plan.metric not in record["evaluations"][-1]:
                        known = ", ".join(key for key in record["evaluations"][-1] if key.startswith("eval_"))
                        raise UsageError(f"metric={plan.metric}: the evaluation reports {known}")
                    if record["status"] == FAILED:
                        bar.write(f"failed: {one.name}: {record['error'].splitlines()[0]}", file=sys.stderr)
                    bar.update()

                pool.carry_out(runs, done)


def _is_due(records: Records, one: Run, retry: bool) -> bool:
    record = records.get(one)
    return record is None or (retry and records.finished(one) is None)


def _report(plan: Plan, records: Records, output_dir: Path) -> int:
    """Write and print what came out; returns the number of failed runs."""
    from ..compare.report import write_report
    from ..compare.search import choices, search_results
    from ..compare.summary import summarise
    from ..compare.table import markdown

    candidates = search_results(plan, records)
    rows = summarise(plan, records, candidates)
    table = markdown(plan, rows, candidates)
    content = {
        "plan": plan.as_json(),
        "rows": [row.as_json(plan.greater_is_better) for row in rows],
        "search": [candidate.as_json() for candidate in candidates],
    }
    (output_dir / "table.md").write_text(table, encoding="utf-8")
    (output_dir / "compare.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table)
    write_report(plan, rows, candidates, records, output_dir)
    runs = _wanted([*plan.selection_runs(), *plan.final_runs(choices(candidates))], None)
    failed = [one for one in runs if records.get(one) and not records.finished(one)]
    if failed:
        print(f"{len(failed)} runs failed: their records in {output_dir / 'runs'} say why; --retry runs them again")
    return len(failed)


if __name__ == "__main__":
    run(main)
