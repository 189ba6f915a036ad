"""All commands: their help, arguments and options. The modules beside this one carry them out."""

# ruff: noqa: FBT002, PLC0415 — typer makes flags of boolean defaults; each command imports only what it needs

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from typer.exceptions import TyperException

import appliance
from appliance.config import options as config
from appliance.errors import InputError
from appliance.text import MOST_LINE, plain_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

app = typer.Typer(
    name="meshbox",
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHOW, CHANGE, HOST = "Show (never changes anything)", "Change", "This host"

Json = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys, for scripts.")]
SpecFile = Annotated[str, typer.Argument(metavar="FILE", help="Spec file, such as app.py.", show_default=False)]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once instead of waiting.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait.")]


def _command(panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function. Its docstring is the help. Paragraphs keep their lines only if marked."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        words = "\n\n".join(p if p.startswith("\b") else " ".join(p.split()) for p in paragraphs)
        return app.command(rich_help_panel=panel, help=words)(function)

    return register


def invoke(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises MeshboxError, also for wrong usage."""
    try:
        code = app(args=list(arguments), prog_name="meshbox", standalone_mode=False)
    except TyperException as error:
        if error.exit_code != 2:
            raise
        words = error.format_message().rstrip(".")
        if not words:  # no arguments at all: the help was shown
            return 2
        raise InputError(f"{words}; see: meshbox --help") from None
    except typer.Abort:
        return 1
    return code if isinstance(code, int) else 0


def _print_version(wanted: bool) -> None:  # noqa: FBT001 — typer calls it so
    if wanted:
        commit = _commit(Path(appliance.__file__).parent)
        sys.stdout.write(f"meshbox {appliance.__version__}{f' ({commit})' if commit else ''}\n")
        raise typer.Exit


def _commit(package: Path) -> str:
    """Return the commit that this was built from, or that is checked out; empty if there is neither."""
    if (package / "COMMIT").exists():  # written when a package or an image is built
        return (package / "COMMIT").read_text(encoding="ascii").strip()
    if not (package.parent / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(package.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@app.callback()
def root(
    context: typer.Context,
    file: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help=f"Configuration instead of {config.DEFAULT_FILE}.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """meshbox turns the Docker of this host into a service mesh: containers find each other by name and reach only
    what they declared.

    \b
    Start here:
      meshbox check                  check whether this host is fit, and how to mend it
      meshbox run                    the appliance itself, in the foreground
      meshbox deploy app.py          deploy the services that a file declares
      meshbox services               show all services
      meshbox why web.shop redis.shop:6379

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """  # noqa: D205, D301, D403 — shown as the help
    context.obj = file


def _config(context: typer.Context) -> config.Config:
    return config.load(context.obj)


def _ask(context: typer.Context, path: str, **parameters: str | None) -> Any:
    from appliance.cli.client import AdminClient

    with AdminClient(_config(context)) as client:
        return client.get(path, **parameters)


def _print(answer: Any, name: str, *, as_json: bool) -> None:
    if as_json:
        answer = answer if name == "rules" else plain_tree(answer, MOST_LINE)
        sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return
    from appliance.cli import tables

    getattr(tables, name)(answer)


@_command(CHANGE)
def deploy(context: typer.Context, file: SpecFile, detach: Detach = False, timeout: Timeout = 120) -> None:
    """Deploy the services that a spec file declares, and wait until every replica is ready.

    The file is Python that runs here, with your rights; the appliance gets only its values. Services that the file
    does not declare are left alone. Deploying the same file again changes nothing. If the file has changed, only what
    differs is replaced, one replica after another. Missing images are pulled first; if one cannot be pulled, nothing
    is changed. With --detach they are pulled afterwards, and failures are tried again.

    \b
    Example, app.py:
      web = service("web", count=2, containers=[
          container("nginx", image="nginx", ports=[80], connect_to=["pg.db"]),
          container("logs", image="fluentd", memory=256, env={"LEVEL": "info"}),
      ])

    \b
    Then:
      meshbox deploy app.py && meshbox services
    """  # noqa: D301 — \b keeps the lines of the help apart
    from appliance.cli.client import AdminClient
    from appliance.cli.deploy import deploy

    with AdminClient(_config(context)) as client:
        deploy(client, file, detach=detach, timeout=timeout)


@_command(CHANGE)
def remove(
    context: typer.Context,
    services: Annotated[list[str], typer.Argument(metavar="SERVICE...", help="Names of deployed services.")],
    detach: Detach = False,
    timeout: Timeout = 60,
) -> None:
    """Remove services: their connections drain, then their containers are stopped and removed.

    Example: meshbox remove web cache
    """
    from appliance.cli.client import AdminClient
    from appliance.cli.deploy import remove

    with AdminClient(_config(context)) as client:
        remove(client, services, detach=detach, timeout=timeout)


@_command(SHOW)
def plan(context: typer.Context, file: SpecFile, as_json: Json = False) -> None:
    """Show what `meshbox deploy FILE` would add (+), change (~) and remove (-), and do nothing."""
    from appliance.cli.client import AdminClient
    from appliance.cli.deploy import plan

    with AdminClient(_config(context)) as client:
        answer = plan(client, file)
    _print(answer if as_json else answer["changes"], "changes", as_json=as_json)


@_command(HOST)
def check(context: typer.Context, as_json: Json = False) -> None:
    """Check whether this host is fit to run meshbox, and show a remedy for each finding.

    Also shows the faults of a running appliance. Exit code 0 only if the appliance would run.
    """
    from appliance.cli.check import check

    rows = check(_config(context))
    _print(rows, "findings", as_json=as_json)
    if any(row["level"] == "failed" for row in rows):
        raise typer.Exit(1)


@_command(HOST)
def cleanup(
    context: typer.Context,
    state: Annotated[
        bool, typer.Option("--state", help="Also remove state_dir: what was deployed, and its virtual IPs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove meshbox's rules from this host and from its containers, its unused Docker network and its run_dir.

    Use it when meshbox leaves a host, after `meshbox remove` and after stopping the appliance: it refuses while one
    runs. Containers stay as they are; without rules they reach whatever Docker lets them reach.
    """
    from appliance.cli.cleanup import clean

    if not clean(_config(context), state=state, as_json=as_json):
        raise typer.Exit(1)


@_command(SHOW)
def services(context: typer.Context, as_json: Json = False) -> None:
    """Show all services: names, virtual IPs, ports, how many replicas are ready, and where."""
    _print(_ask(context, "services"), "services", as_json=as_json)


@_command(SHOW)
def workloads(context: typer.Context, as_json: Json = False) -> None:
    """Show this host's containers in the mesh: rules, door, and what each is waiting for."""
    _print(_ask(context, "workloads"), "workloads", as_json=as_json)


@_command(SHOW)
def routes(context: typer.Context, as_json: Json = False) -> None:
    """Show the proxy port of each destination, its backends and their counters."""
    _print(_ask(context, "routes"), "routes", as_json=as_json)


@_command(SHOW)
def hosts(context: typer.Context, as_json: Json = False) -> None:
    """Print lines for /etc/hosts with the names of the mesh, for a developer's machine.

    The addresses are virtual. They work on this host with host_access, and on its guests, which need a route to
    vip_range through this host.

    Example: meshbox hosts | ssh laptop 'sudo tee -a /etc/hosts'
    """
    settings = _config(context)
    found = sorted({(row["destination"].partition(":")[0], row["vip"]) for row in _ask(context, "routes")})
    lines = [{"address": vip, "names": [name, f"{name}.{settings.suffix}"]} for name, vip in found]
    _print(lines, "hosts", as_json=as_json)
    if not settings.visitors(gateway=settings.is_gateway):
        words = "only containers reach these addresses: set host_access for this host, guests for other computers"
        sys.stderr.write(f"warning: {words}\n")


@_command(SHOW)
def peers(context: typer.Context, as_json: Json = False) -> None:
    """Show the registry, how fresh its facts are, and the other machines."""
    _print(_ask(context, "peers"), "peers", as_json=as_json)


@_command(SHOW)
def connections(context: typer.Context, as_json: Json = False) -> None:
    """Show the open connections and UDP sessions that go through the proxy, oldest first."""
    _print(_ask(context, "connections"), "connections", as_json=as_json)


ClientName = Annotated[
    str,
    typer.Argument(metavar="CLIENT", help="A container: mesh name, Docker name, id or address.", show_default=False),
]


@_command(SHOW)
def rules(
    context: typer.Context,
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="Mesh name, Docker name, id or address.")],
    as_json: Json = False,
) -> None:
    """Show the nft rules in a container's network namespace as they are now.

    Example: meshbox rules web.shop
    """
    _print(_ask(context, "rules", workload=workload), "rules", as_json=as_json)


@_command(SHOW)
def resolve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as redis.flask.", show_default=False)],
    client: Annotated[
        str | None, typer.Option("--from", metavar="CLIENT", help="Answer as this container would get it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a name resolves to. Exit code 1 if it does not exist for the client.

    Example: meshbox resolve redis.flask --from web.shop
    """
    answer = _ask(context, "resolve", name=name, client=client)
    _print(answer, "resolve", as_json=as_json)
    if answer["answer"] == "NXDOMAIN":
        raise typer.Exit(1)


@_command(SHOW)
def why(
    context: typer.Context,
    client: ClientName,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="Such as redis.flask:8080 or dns.core:53/udp.")
    ],
    as_json: Json = False,
) -> None:
    """Walk the way of a connection, and show where it ends and what to write to change that.

    name → virtual IP → rule in the client's namespace → listener → permission → backends and their health.
    Exit code 0 if the way is open, else 1.

    Example: meshbox why web.shop redis.flask:8080
    """
    answer = _ask(context, "why", client=client, destination=destination)
    _print(answer, "why", as_json=as_json)
    if not answer["reached"]:
        raise typer.Exit(1)


def run(context: typer.Context, **flags: str | None) -> None:
    """Run the appliance in the foreground until SIGTERM or Ctrl-C. Containers outlive it.

    Every option is also a key of the configuration file and a variable: dns_port, MESHBOX_DNS_PORT, --dns-port.
    A flag wins over a variable, and a variable over the file.
    """
    from appliance.cli.run import run

    names = {option.key.replace(".", "__"): option.key for option in config.options()}
    file = flags.pop("config") or context.obj
    raise typer.Exit(run(file, {names[key]: value for key, value in flags.items() if value is not None}))


def _with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Give `run` one option for each field of the configuration."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    given = [("config", "--config", f"configuration file; default {config.DEFAULT_FILE}")]
    for option in config.options():
        default = f" (default {option.default})" if option.default else ""
        given.append((option.key.replace(".", "__"), option.flag, option.words + default))
    for name, flag, words in given:
        kind = Annotated[str | None, typer.Option(flag, help=words.replace("[", "\\["), show_default=False)]
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=kind))
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


_command(HOST)(_with_flags(run))
