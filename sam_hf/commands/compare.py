"""
Compare methods on your own data: a YAML file lists variants, seeds and rates of label noise. Their runs can run in
parallel and are resumed after a stop. The report shows paired differences and their confidence intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import PlainParser, run
from ..errors import UsageError

if TYPE_CHECKING:
    from ..compare.plan import Plan, Run
    from ..compare.records import Records


_THREADS = "threads per run; default: OMP_NUM_THREADS, and if it is not set, the cores divided by the jobs"


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)

    # Not imported above: with `python -m`, worker processes import this file before they set their threads and device
    from ..compare.read import read_plan
    from ..compare.records import Records

    plan = read_plan(options.plan)
    for name in options.only or ():
        if name not in plan.variants:
            raise UsageError(f"--only {name}: there is {', '.join(plan.variants)}")
    if options.output_dir is not None and options.output_dir.is_file():
        raise UsageError(f"output_dir={options.output_dir} is a file: it must be a folder")
    records = None if options.output_dir is None else Records(options.output_dir / "runs")
    if records is not None:
        _look_at_records(plan, records, options.output_dir)
    if options.dry_run:
        return _list_runs(plan, records, options)
    if records is None:
        raise UsageError(
            "--output_dir is missing: give a folder for the results, from which a stopped comparison goes on"
        )
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
    parser.add_argument("--threads", type=int, help=_THREADS)
    parser.add_argument("--only", metavar="NAME", action="append", help="run only this variant; may be repeated")
    parser.add_argument("--dry_run", action="store_true", help="list the runs, with what is done, and stop")
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    parser.add_argument("--keep_models", action="store_true", help="keep the trained weights in OUTPUT_DIR/models")
    return parser


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    options = make_parser().parse_args(argv)
    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} is not allowed: it must be at least 1")
    if options.threads is None:
        options.threads = _threads_of_environment() or max(1, _cores() // options.jobs)
    return options


def _threads_of_environment() -> int | None:
    """Return the number in `OMP_NUM_THREADS`, if it is set. A list has the number of the outermost level first."""
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not given:
        return None
    first = given.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise UsageError(f"OMP_NUM_THREADS={given} is not allowed: it must be a whole number of at least 1")
    return int(first)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _look_at_records(plan: Plan, records: Records, output_dir: Path) -> None:
    """Refuse a metric that earlier runs do not have, and say how many records are of other runs than the plan's."""
    runs = plan.all_runs()
    for each in runs:
        if (record := records.finished(each)) is not None:
            _refuse_unknown_metric(plan, record)
    if others := records.others(runs):
        of_others = "1 other run" if others == 1 else f"{others} other runs"
        print(f"{output_dir / 'runs'} also has the records of {of_others}, not in this plan", file=sys.stderr)


def _refuse_unknown_metric(plan: Plan, record: Mapping[str, Any]) -> None:
    last = record["evaluations"][-1]
    if plan.metric not in last:
        known = ", ".join(key for key in last if key.startswith("eval_"))
        raise UsageError(f"metric={plan.metric}: the evaluation reports {known}")


def _list_runs(plan: Plan, records: Records | None, options: argparse.Namespace) -> None:
    """Print every run with what has become of it, and how many are left."""
    from ..compare.search import choices, search_results

    chosen = {} if records is None else choices(search_results(plan, records))
    search = _unique_runs(plan.selection_runs(), options.only)
    final = _unique_runs(plan.final_runs(chosen), options.only)
    counts = dict.fromkeys(("done", "failed", "to do"), 0)
    for each in [*search, *final]:
        record = None if records is None else records.get(each)
        status = "to do" if record is None else "done" if record["status"] == "finished" else "failed"
        counts[status] += 1
        print(f"{status:6}  {each.name}")
    variants = [variant for variant in plan.variants.values() if not options.only or variant.name in options.only]
    known = plan.known_choices(chosen)
    later = sum((variant.name, noise) not in known for variant in variants for noise in plan.label_noise)
    later *= len(plan.seeds)
    counts["to do"] += later
    if options.retry:
        counts["to do"] += counts.pop("failed")
    elif counts["failed"]:
        counts["failed (--retry runs them again)"] = counts.pop("failed")
    parts = [f"{count} {status}" for status, count in counts.items() if count or status in ("done", "to do")]
    print(f"{len(search) + len(final) + later} runs: {', '.join(parts)}")
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
                    if record["status"] == FINISHED:
                        _refuse_unknown_metric(plan, record)
                    if record["status"] == FAILED:
                        bar.write(f"failed: {finished.name}: {record['error']}", file=sys.stderr)
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
    failed = [record for each in runs if (record := records.get(each)) and not records.finished(each)]
    if failed:
        runs_failed = "1 run failed" if len(failed) == 1 else f"{len(failed)} runs failed"
        print(f"{runs_failed}. The errors are in {output_dir / 'runs'}; --retry runs them again.")
        # Runs often fail for the same reason, such as a file that is missing
        for error, times in Counter(str(record.get("error")) for record in failed).items():
            print(f"  {times} × {error}")
    return len(failed)


if __name__ == "__main__":
    run(main)
