"""Flags of `vllm serve` and vLLM-Omni that are called otherwise here, and what docs/guide/migrate.md has in their place."""

from __future__ import annotations

from collections.abc import Mapping

import click

_GUIDE = "docs/guide/migrate.md"
_ENGINE_ARGUMENTS = {
    "--dtype": "NAME", "--enforce-eager": "true", "--gpu-memory-utilization": "X", "--max-model-len": "N", "--max-num-seqs": "N",
    "--quantization": "NAME", "--tensor-parallel-size": "N", "--trust-remote-code": "true",
}  # fmt: skip
"""Arguments of an engine, each with its value: a stage each has its own."""
_FILE = "the file is the first argument of `omnibus serve`; a worker names the deployed pipeline with --pipeline"
_BROKER = "--nats-host HOST --nats-port PORT --insecure of `omnibus serve`, --nats nats://HOST:PORT of `omnibus worker`"
_OVERRIDE = "it is an engine argument of a stage: --stage-overrides 0.engine_args."
ELSEWHERE: Mapping[str, str] = {
    "--omni": "leave it out, as there is nothing else",
    "--headless": "leave it out, as `omnibus worker` has no front door",
    "--deploy-config": _FILE,
    "--stage-configs-path": _FILE,
    "--stage-id": "--stages N of `omnibus serve`, --stage N of `omnibus worker`",
    "--omni-dp-size-local": "--replicas N",
    "--omni-master-address": _BROKER,
    "--omni-master-port": _BROKER,
    "--omni-replica-address": "leave it out, as a worker has one connection, outwards, to the broker",
    "--replica-id": "leave it out, as ids are assigned",
    "--omni-lb-policy": "--lb-policy POLICY of `omnibus serve`, or lb_policy in the file",
    "--omni-heartbeat-timeout": "heartbeat_timeout in the file",
    "--log-file": "leave it out, as logs are on stderr",
    "--api-key": "`omnibus keys add NAME`, or OMNIBUS_API_KEYS, as all users of a machine see its command lines",
    "--worker-backend": "leave it out, as every replica is a process",
    "--ray-address": "start `omnibus worker` on each machine",
    "--shm-threshold-bytes": "payload of an edge in the file, and --shared-memory",
    "--batch-timeout": "batch_window_ms of a diffusion stage in the file",
    **{
        flag: f"{_OVERRIDE}{flag[2:].replace('-', '_')}={value}, or engine_args in the file"
        for flag, value in _ENGINE_ARGUMENTS.items()
    },
}
"""Flags that no command has here, and words for what takes their place."""


def elsewhere(flag: str) -> str | None:
    """Words for what takes the place of a flag of vLLM's; None for one that is none of its, or is the same here.

    With underscores it is the same flag, as to vLLM.
    """
    return ELSEWHERE.get(flag.replace("_", "-"))


class ServingCommand(click.Command):
    """A command in whose place others have `vllm serve`: it says where that one's flags belong here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; the error of a flag of vLLM's says what takes its place."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (text := elsewhere(error.option_name)) is None:
                raise
            message = f"{error.option_name} is vLLM's; here {text} (all flags: {_GUIDE})"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error
