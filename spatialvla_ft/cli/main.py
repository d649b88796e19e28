"""The `spatialvla-ft` command: a table of contents, one module per command.

Command modules import heavy libraries inside their functions, so that `--help` stays instant.
"""

import typer

from spatialvla_ft.cli import (
    adapt,
    bench,
    check_robot,
    data_annotate,
    data_convert,
    data_depth,
    data_index,
    data_inspect,
    data_record,
    data_stats,
    export,
    grids_compare,
    init_base,
    plan_memory,
    predict,
    push,
    quickstart,
    recipes,
    train,
)
from spatialvla_ft.cli.evaluate import open_loop, report, sim
from spatialvla_ft.cli.grids import fit, plot, resize
from spatialvla_ft.cli.push import push_data

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune, evaluate and ship spatial vision-language-action models for robots.\n\n"
    "Exit codes: 0 done; 1 refused or failed, with the reason on stderr; 2 an option or argument "
    "used wrongly; 75 training stopped by a signal, to be continued.",
)
data = typer.Typer(no_args_is_help=True, help="Record, index and look at demonstrations.")
grids = typer.Typer(no_args_is_help=True, help="Fit, look at and change adaptive action grids.")
evaluate = typer.Typer(no_args_is_help=True, help="Measure a policy, open loop and closed loop.")
app.add_typer(data, name="data")
app.command("quickstart")(quickstart.quickstart)
app.command("init-base")(init_base.init_base)
app.command("recipes")(recipes.recipes)
app.command("train")(train.train)
app.command("adapt")(adapt.adapt)
app.command("plan-memory")(plan_memory.plan_memory)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("check-robot")(check_robot.check_robot)
app.command("bench")(bench.bench)
data.command("record")(data_record.record)
data.command("convert")(data_convert.convert)
data.command("index")(data_index.index)
data.command("inspect")(data_inspect.inspect)
data.command("annotate")(data_annotate.annotate)
data.command("push")(push_data)
data.command("stats")(data_stats.stats)
data.command("depth")(data_depth.depth)
app.add_typer(grids, name="grids")
grids.command("fit")(fit)
grids.command("plot")(plot)
grids.command("compare")(grids_compare.compare)
grids.command("resize")(resize)
app.add_typer(evaluate, name="eval")
evaluate.command("open-loop")(open_loop)
evaluate.command("sim")(sim)
evaluate.command("report")(report)


def main() -> None:
    """Run the command line."""
    app()
