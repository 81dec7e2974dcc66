"""
Compare methods on your own data: a YAML file lists variants, seeds and rates of label noise. Their runs can run in
parallel and are resumed after a stop. The report shows paired differences and their confidence intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import PlainParser, run
from ..errors import UsageError

if TYPE_CHECKING:
    from ..compare.plan import Plan, Run
    from ..compare.records import Records


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)

    # Not imported above: with `python -m`, worker processes import this file before they set their threads and device
    from ..compare.read import read_plan
    from ..compare.records import Records

    plan = read_plan(options.plan)
    for name in options.only or ():
        if name not in plan.variants:
            raise UsageError(f"--only {name}: there is {', '.join(plan.variants)}")
    if options.dry_run:
        return _list_runs(plan, options.only)
    if options.output_dir is None:
        raise UsageError(
            "--output_dir is missing: give a folder for the results, from which a stopped comparison goes on"
        )
    if options.output_dir.is_file():
        raise UsageError(f"output_dir={options.output_dir} is a file: it must be a folder")
    records = Records(options.output_dir / "runs")
    try:
        _run_stages(plan, records, options)
    except KeyboardInterrupt:
        print(f"stopped: the same command goes on from the results in {options.output_dir}", file=sys.stderr)
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
    parser.add_argument("plan", metavar="FILE", help="YAML file of the comparison: see docs/compare.md")
    parser.add_argument("--output_dir", type=Path, help="folder of the results; its finished runs are not run again")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time, each in its own process")
    parser.add_argument("--threads", type=int, help="threads per run; default: the cores divided by the jobs")
    parser.add_argument("--only", metavar="NAME", action="append", help="run only this variant; may be repeated")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and stop")
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    parser.add_argument("--keep_models", action="store_true", help="keep the trained weights in OUTPUT_DIR/models")
    return parser


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    options = make_parser().parse_args(argv)
    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} is not allowed: it must be at least 1")
    if options.threads is None:
        options.threads = max(1, (os.cpu_count() or 1) // options.jobs)
    return options


def _list_runs(plan: Plan, only: Sequence[str] | None) -> None:
    search = _unique_runs(plan.selection_runs(), only)
    final = _unique_runs(plan.final_runs({}), only)
    for each in [*search, *final]:
        print(each.name)
    open_variants = [v for v in plan.variants.values() if len(v.grid) > 1 and (not only or v.name in only)]
    later = len(open_variants) * len(plan.label_noise) * len(plan.seeds)
    print(
        f"{len(search)} runs of the search, {len(final) + later} to report"
        + (f", {later} of them with what the search will choose" if later else "")
    )


def _unique_runs(runs: Sequence[Run], only: Sequence[str] | None = None) -> list[Run]:
    """Return each run once, although several variants may need it. `only` restricts the variants."""
    return list({each.key: each for each in runs if only is None or each.variant in only}.values())


def _run_stages(plan: Plan, records: Records, options: argparse.Namespace) -> None:
    """
    Run the search, then the runs to report, one seed after the other. If this is stopped, the seeds that are done have
    the results of all variants.
    """
    from tqdm.auto import tqdm

    from ..compare.pool import Pool, visible_devices
    from ..compare.records import FAILED, FINISHED
    from ..compare.search import choices, search_results
    from ..compare.worker import WorkerSettings

    started: set[str] = set()  # a run that fails is not run again by the same command
    settings = WorkerSettings(options.output_dir, 0, options.threads, None, options.keep_models)
    with Pool(options.jobs, settings, visible_devices()) as pool:
        for stage in ("search", "final"):
            chosen = choices(search_results(plan, records))
            runs = plan.selection_runs() if stage == "search" else plan.final_runs(chosen)
            runs = [
                each
                for each in _unique_runs(runs, options.only)
                if each.key not in started and _is_due(records, each, options.retry)
            ]
            started |= {each.key for each in runs}
            if not runs:
                continue
            with tqdm(total=len(runs), unit="run", desc=stage) as bar:

                def done(finished: Run, content: dict[str, Any], bar: Any = bar) -> None:
                    record = records.add(finished, content)
                    if record["status"] == FINISHED and plan.metric not in record["evaluations"][-1]:
                        known = ", ".join(key for key in record["evaluations"][-1] if key.startswith("eval_"))
                        raise UsageError(f"metric={plan.metric}: the evaluation reports {known}")
                    if record["status"] == FAILED:
                        bar.write(f"failed: {finished.name}: {record['error'].splitlines()[0]}", file=sys.stderr)
                    bar.update()

                pool.run_all(runs, done)


def _is_due(records: Records, candidate: Run, retry: bool) -> bool:
    return records.get(candidate) is None or (retry and records.finished(candidate) is None)


def _report(plan: Plan, records: Records, output_dir: Path) -> int:
    """Write and print the results, and return the number of failed runs."""
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
    runs = _unique_runs([*plan.selection_runs(), *plan.final_runs(choices(candidates))])
    failed = [each for each in runs if records.get(each) and not records.finished(each)]
    if failed:
        print(f"{len(failed)} runs failed. The errors are in {output_dir / 'runs'}; --retry runs them again.")
    return len(failed)


if __name__ == "__main__":
    run(main)
