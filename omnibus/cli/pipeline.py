"""`omnibus pipeline`: show, validate, import, deploy, list and delete pipelines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command
from omnibus.cli.pipeline_import import import_pipeline

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.pipeline.spec import PipelineSpec


@click.group("pipeline")
def command() -> None:
    """Show, validate, import, deploy, list or delete pipelines. PIPELINE is a file, or the name of a shipped one."""


command.add_command(import_pipeline)


@command.command()
@click.argument("pipeline")
@options.platform
@options.stage_overrides
@click.option("--yaml", "as_yaml", is_flag=True, help="Print what was merged as one file instead.")
def show(pipeline: str, platform: str | None, stage_overrides: tuple[str, ...], as_yaml: bool) -> None:
    """Draw the graph of a pipeline. What its file inherits and its platform adds is in it."""
    from omnibus.pipeline.drawing import draw_pipeline  # noqa: PLC0415 commands import when they run
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.pipeline.overrides import override_stages  # noqa: PLC0415
    from omnibus.pipeline.writing import pipeline_yaml  # noqa: PLC0415

    spec = override_stages(load_pipeline(pipeline, platform), stage_overrides)
    click.echo(pipeline_yaml(spec) if as_yaml else draw_pipeline(spec), nl=False)


@command.command()
@click.argument("pipelines", metavar="PIPELINE...", nargs=-1, required=True)
def validate(pipelines: tuple[str, ...]) -> int:
    """Check pipelines. The first error of each names file, line and field. Exit code 2 if any is wrong.

    The modules that a file names are imported, in a process of their own, and models in folders must be there.
    """
    from omnibus.errors import PipelineError  # noqa: PLC0415
    from omnibus.pipeline.loading import build_pipeline, load_document  # noqa: PLC0415
    from omnibus.workers.stage_checks import problems_of_names  # noqa: PLC0415

    status = 0
    for pipeline in pipelines:
        try:
            document = load_document(pipeline)
            spec = build_pipeline(document)
            for problem in problems_of_names(spec):
                raise document.error(problem.path, problem.message)
        except PipelineError as error:
            status = 2
            click.echo(error.message, err=True)
        else:
            click.echo(f"{pipeline}: ok, {spec.name}: {', '.join(spec.modalities)}")
    return status


@command.command()
@click.argument("file", metavar="PIPELINE")
@options.platform
@options.broker
def deploy(file: str, platform: str | None) -> None:
    """Deploy a pipeline. The broker keeps it, with the queues that it needs, so that workers need only a stage."""
    from omnibus.cli.root import ask, load_settings, on_broker  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import deploy_pipeline  # noqa: PLC0415

    spec, settings = load_pipeline(file, platform), load_settings()
    deployment = ask(
        on_broker(settings, "deploy", lambda broker: deploy_pipeline(broker, spec, replicas=settings.nats_replicas))
    )
    for change in deployment.changes:
        click.echo(str(change))
    outcome = "deployed" if deployment.stored else "was deployed already"
    click.echo(f"{spec.name} {outcome}, revision {deployment.deployed.revision}")
    for stage in spec.stages:
        if stage.python is not None:
            click.echo(
                f"{stage.name}.python is not deployed: each worker has its own, --stage-overrides '{stage.name}.python=PATH'"
            )
    if deployment.stored and deployment.deployed.revision > 1 and deployment.replicas:
        replicas = f"{deployment.replicas} replica{'s' if deployment.replicas > 1 else ''}"
        click.echo(f"{replicas} run what was deployed before: omnibus restart --all --pipeline {spec.name}")


@command.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even while requests are open, which end without a word, or replicas up.")
@options.confirmed("Remove the pipeline, its answers and its dead letters?")
@broker_command("delete", pipeline=False)
async def delete(session: CommandSession, name: str, *, force: bool) -> None:
    """Remove a deployed pipeline with its answers and dead letters. Refused while requests of it are open, or replicas up."""
    from omnibus.registry.deployed_pipelines import delete_pipeline, load_deployed  # noqa: PLC0415

    await delete_pipeline(session.connection, await load_deployed(session.connection, name), force=force)
    click.echo(f"{name} deleted")


@command.command("list")
@click.option("--shipped", is_flag=True, help="List what comes with the package; needs no broker.")
@options.as_json
@options.broker
def list_pipelines(*, shipped: bool, as_json: bool) -> None:
    """List the deployed pipelines: name, revision, outputs, stages."""
    from omnibus.cli.root import ask, load_settings, on_broker  # noqa: PLC0415
    from omnibus.cli.tables import make_table, show  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline, presets  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import list_deployed  # noqa: PLC0415

    found: list[tuple[PipelineSpec, int | None]] = (
        [(load_pipeline(name), None) for name in presets()] if shipped else []
    )
    if not shipped:
        found = [(one.spec, one.revision) for one in ask(on_broker(load_settings(), "list", list_deployed))]
    rows = [
        {
            "name": spec.name,
            "revision": revision,
            "modalities": spec.modalities,
            "stages": [one.name for one in spec.stages],
        }
        for spec, revision in found
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    cells = [[", ".join(value) if isinstance(value, list | tuple) else value for value in row.values()] for row in rows]
    show(make_table(("pipeline", "revision", "outputs", "stages"), cells))
