"""The language of spec files: `service()`, `container()`, and `load()`, which evaluates a file.

A spec file is Python that runs in the command line's process with the caller's rights; only its values travel on.
It needs no import, since both names are bound; `from appliance.spec.dsl import service, container` works as well.
What counts are the services that module-level variables hold, singly or in lists.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from appliance.errors import InputError
from appliance.model.spec import Container, Service
from appliance.spec.parse import check_services, parse_container, parse_service, refuse_reserved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FORMER_NAME = "appliance.dsl"
"""What this module was called in version 0.1.0. Spec files may import it under that name."""

_made: ContextVar[list[tuple[Service, int]] | None] = ContextVar("_made", default=None)
"""While a file is loaded: the services that it made, with the lines where it did."""


def service(
    name: str,
    *,
    count: int = 1,
    containers: Sequence[Container] = (),
    constraint: str | None = None,
    open: bool = False,  # noqa: A002 — the word of spec files
    **unknown: Any,
) -> Service:
    """Declare a group of containers that is replicated `count` times, spread over the machines.

    Others reach its containers as `<container>.<service>:<port>`. With `open`, containers that others label with its
    name belong to it. Raises InputError.
    """
    raw = {"name": name, "count": count, "containers": containers, "constraint": constraint, "open": open, **unknown}
    made = parse_service(raw)
    refuse_reserved(made.name)
    known = _made.get()
    if known is not None:
        known.append((made, sys._getframe(1).f_lineno))  # noqa: SLF001 — the line is worth it, and this is CPython
    return made


def container(
    name: str,
    *,
    image: str | None = None,
    ports: Sequence[str | int] = (),
    connect_to: Sequence[str] = (),
    cpu: int | None = None,
    memory: int | None = None,
    command: str | Sequence[str] | None = None,
    env: Mapping[str, str | int | float] | Sequence[str] = (),
    volumes: Sequence[str] = (),
    health: Mapping[str, Any] | Sequence[str] | str | None = None,
    cap_add: Sequence[str] = (),
    cap_drop: Sequence[str] = (),
    **unknown: Any,
) -> Container:
    """Declare one container of a service. Raises InputError.

    `ports` are what others may reach: `8080`, `"8080/udp"`, `"8080:6379"` (mesh port : container port).
    `connect_to` is all that it may reach: `"apple.orange:8080"`, `"apple.orange:8080/udp"`, `"apple.orange"`.
    `cpu` is in thousandths of a core, `memory` in MiB; both are hard limits. `command`, `env`, `volumes` and `health`
    are as in Docker, `cap_add` and `cap_drop` too, except that `NET_RAW` is dropped unless `cap_add` has it.
    """
    raw = {
        "name": name,
        "image": image,
        "ports": ports,
        "connect_to": connect_to,
        "cpu": cpu,
        "memory": memory,
        "command": command,
        "env": env,
        "volumes": volumes,
        "health": health,
        "cap_add": cap_add,
        "cap_drop": cap_drop,
        **unknown,
    }
    return parse_container(raw)


def load(path: str | Path) -> tuple[tuple[Service, ...], tuple[str, ...]]:
    """Evaluate a spec file; return its services and warnings. Raises InputError with the file and the line."""
    path = Path(path)
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: syntax error: {error.msg}") from None
    except ValueError as error:  # a zero byte in the source
        raise InputError(f"{path}: is not Python source: {error}") from None
    made: list[tuple[Service, int]] = []
    module = ModuleType("meshbox_spec")
    module.__dict__.update(__file__=str(path), service=service, container=container)
    with _environment(path, module, made):
        try:
            exec(code, module.__dict__)  # noqa: S102 — the caller's own file with the caller's own rights
        except (Exception, SystemExit) as error:  # noqa: BLE001 — whatever it raises is told to its author
            raise _located(path, error) from None
    services = tuple(_services(vars(module).values()))
    _refuse_twins(path, services, made)
    if not services:
        raise InputError(f'{path}: declares no service; write for example web = service("web", containers=[…])')
    lost = [
        f'{path}:{line}: service "{loose.name}" is in no module-level variable and is left out'
        for loose, line in made
        if not any(loose is kept for kept in services)
    ]
    return services, (*lost, *check_services(services))


@contextmanager
def _environment(path: Path, module: ModuleType, made: list[tuple[Service, int]]) -> Iterator[None]:
    """Provide what a spec file may expect: modules beside it can be imported; what it prints goes to stderr.

    This module is there under its former name too, also as an attribute of its package.
    """
    folder = str(path.resolve().parent)
    token = _made.set(made)
    sys.path.insert(0, folder)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    package, _, former = FORMER_NAME.partition(".")
    sys.modules[FORMER_NAME] = sys.modules[__name__]
    setattr(sys.modules[package], former, sys.modules[__name__])
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(folder)
        del sys.modules[module.__name__], sys.modules[FORMER_NAME]
        delattr(sys.modules[package], former)
        _made.reset(token)


def _located(path: Path, error: BaseException) -> InputError:
    """Word any error of a spec file with the line of that file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    words = " ".join(str(error).split())
    if not isinstance(error, InputError):
        words = f"{type(error).__name__}: {words}".removesuffix(": ")
    return InputError(f"{place}: {words}")


def _services(values: Iterable[Any]) -> Iterator[Service]:
    """Yield each service once, however many variables hold it."""
    seen: set[int] = set()
    for value in values:
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Service) and id(item) not in seen:
                seen.add(id(item))
                yield item


def _refuse_twins(path: Path, services: Sequence[Service], made: Sequence[tuple[Service, int]]) -> None:
    """Raise where two different services have one name, naming both lines."""
    lines = {id(one): line for one, line in made}
    first: dict[str, Service] = {}
    for one in sorted(services, key=lambda s: lines.get(id(s), 0)):
        if one.name in first:
            before = lines.get(id(first[one.name]))
            raise InputError(
                f'{path}:{lines.get(id(one), 1)}: service "{one.name}" is declared already'
                f"{f' on line {before}' if before else ''}; give one of them another name"
            )
        first[one.name] = one
