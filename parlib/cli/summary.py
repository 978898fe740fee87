"""What the runner says at its end: the attacks of its runs in a table, how they differ from the published ones, and where to look."""

from parlib.cache import ROOT, atomic_file
from parlib.cli.plan import Planned
from parlib.experiments.registry import check
from parlib.records.status import fresh
from parlib.records.store import REFERENCE, differences, outputs, read, read_all, read_file
from parlib.report.rows import table
from parlib.report.tables import brief


def show(runs: list[Planned]) -> None:
    """Print it, and write table.csv and, where notebook 05 was drawn, report.html."""
    scale = runs[0].params.scale
    folder, ids = outputs(scale), [run.id for run in runs if not run.view]
    if ids and read_all(folder):
        rows = table(fresh(scale, check))
        with atomic_file(folder / "table.csv") as temporary:
            rows.to_csv(temporary, index=False)
        attacks = rows.loc[rows["run"].isin(ids), ["encoder", "trigger", "attack"]].drop_duplicates()
        print("\n" + brief(rows.merge(attacks)).to_string(index=False))
    for run in ids if scale == "small" else []:
        published = REFERENCE / f"{run}.json"
        if not published.exists():
            print(f"{run} is not among the published runs")
            continue
        changed = differences(read(scale, run), read_file(published))
        print(f"{run} against outputs/reference: {changed or 'no difference'}")
    executed = folder / "05_evaluate.ipynb"
    if any(run.id == "05_evaluate" for run in runs) and executed.exists():
        from nbconvert import HTMLExporter  # here, as it takes a second and a half

        page, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
        with atomic_file(folder / "report.html") as temporary:
            temporary.write_text(page)
        print(f"report: {(folder / 'report.html').relative_to(ROOT)}")
