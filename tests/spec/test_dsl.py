from __future__ import annotations

import sys
from textwrap import dedent

import pytest

import appliance
from appliance.errors import InputError
from appliance.model.names import Port
from appliance.spec import dsl


@pytest.fixture
def write(tmp_path):
    """Write a spec file and return its path."""

    def write(text, name="app.py"):
        path = tmp_path / name
        path.write_text(dedent(text))
        return path

    return write


def refused(path):
    """What loading says, on one line, without the folder."""
    with pytest.raises(InputError) as caught:
        dsl.load(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{path.parent}/")


DESIGN = """
    # app.py
    flask = service(
        "flask",
        count=2,
        containers=[
            container(
                "flask",
                image="crccheck/hello-world",
                ports=["8080/udp", 8080],
                cpu=500,
                memory=256,
                command="bash",
                connect_to=["apple.orange:8080"],
            ),
            container("redis", image="redis", ports=[8080]),
        ],
    )
"""


def test_example_of_the_design(write):
    """The example that users know is accepted as it stands; what it connects to may come later."""
    (flask,), warnings = dsl.load(write(DESIGN))
    assert (flask.name, flask.count) == ("flask", 2)
    web, redis = flask.containers
    assert (web.name, web.image, web.command) == ("flask", "crccheck/hello-world", "bash")
    assert (web.cpu, web.memory) == (500, 256)
    assert web.ports == (Port.parse("8080/udp"), Port.parse(8080))
    assert [str(a) for a in web.connect_to] == ["apple.orange:8080"]
    assert (redis.name, redis.ports) == ("redis", (Port.parse(8080),))
    assert len(warnings) == 1
    assert 'connect_to "apple.orange:8080" does not exist' in warnings[0]


def test_import_is_possible(write):
    """The same file works with the names imported, as editors and type checkers want it."""
    bare, _ = dsl.load(write(DESIGN))
    imported, _ = dsl.load(write("from appliance.spec.dsl import service, container\n" + dedent(DESIGN)))
    assert imported == bare


def test_module_level_values_count(write):
    """Services in variables and in lists count, each once; what a function made and dropped is warned of."""
    path = write("""
        def make(name):
            return service(name, containers=[container("web", image="x")])
        single = also = make("single")
        many = [make(f"many{i}") for i in range(2)]
        make("lost")
    """)
    services, warnings = dsl.load(path)
    assert [s.name for s in services] == ["single", "many0", "many1"]
    assert warnings == (f'{path}:3: service "lost" is in no module-level variable and is left out',)


def test_modules_beside_it(write, capsys):
    """A spec file can import a module beside it and print, without disturbing what we print."""
    write("image = 'x'", "shared_values.py")
    path = write("""
        import dataclasses, shared_values
        print("hello")
        @dataclasses.dataclass
        class Sizes:
            cpu: "int" = 100
        one = service("one", containers=[container("web", image=shared_values.image, cpu=Sizes().cpu)])
    """)
    before = list(sys.path)
    (one,), _ = dsl.load(path)
    assert one.containers[0].cpu == 100
    assert sys.path == before
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (1,\ny = ]", "app.py:2: syntax error: "),
        ("x = 1\ny = 1 / 0", "app.py:2: ZeroDivisionError: division by zero"),
        ("def f():\n  raise ValueError('a\\nb')\nf()", "app.py:2: ValueError: a b"),
        ("exit(3)", "app.py:1: SystemExit: 3"),
        ("import nothing_of_that_name", "app.py:1: ModuleNotFoundError: "),
        ("x = 1", "app.py: declares no service; write for example "),
        ("", "app.py: declares no service; "),
        ("a = service()", "app.py:1: TypeError: service() missing 1 required positional argument: 'name'"),
        ('\na = service("a", cuont=1)', 'app.py:2: service "a": unknown field "cuont" (did you mean "count"?)'),
        ('a = container("a", image="x", port=[1])', 'container "a": unknown field "port" (did you mean "ports"?)'),
        ('a = container("a")', 'app.py:1: container "a": image is missing'),
        (
            'c = [container("c", image="x")]\na = service("s", containers=c)\nb = service("s", containers=c)',
            'app.py:3: service "s" is declared already on line 2; give one of them another name',
        ),
    ],
)
def test_bad_file(write, text, words):
    """A faulty file is refused in one line with the file, the line and the fault."""
    assert words in refused(write(text))


def test_missing_file(tmp_path):
    """A file that is not there is refused in one line."""
    assert refused(tmp_path / "app.py") == "app.py: cannot be read: No such file or directory"


def test_zero_byte(write):
    """A file that is no text is refused in one line."""
    assert refused(write("a\0b")).startswith("app.py")


@pytest.mark.parametrize(
    "head",
    [
        "from appliance.dsl import container, service",
        "from appliance import dsl\nservice, container = dsl.service, dsl.container",
        "import appliance.dsl\nservice, container = appliance.dsl.service, appliance.dsl.container",
        "from appliance.spec.dsl import container, service",
    ],
)
def test_imports_of_version_0_1_0(write, head):
    """A file may import both names from the module as it was called then, and from the module as it is called now."""
    text = 'flask = service("flask", containers=[container("nginx", image="nginx")])'
    (flask,), warnings = dsl.load(write(f"{head}\n{text}\n"))
    assert (flask.name, flask.containers[0].image, warnings) == ("flask", "nginx", ())


def test_former_name_is_there_only_while_a_file_runs(write):
    """Afterwards it is gone, also where the file failed, so that nothing of ours comes to need it."""
    head, body = "from appliance.dsl import *", 'x = service("x", containers=[container("a", image="b")])'
    dsl.load(write(f"{head}\n{body}\n"))
    with pytest.raises(InputError):
        dsl.load(write("import appliance.dsl\n1 / 0\n"))
    assert "appliance.dsl" not in sys.modules
    assert not hasattr(appliance, "dsl")


def test_a_reserved_name_is_refused_where_it_stands(write):
    """With the line, why, and what to do."""
    one = 'one = service("one", containers=[container("a", image="b")])'
    path = write(f'{one}\ntwo = service("local", containers=one.containers)')
    assert refused(path) == (
        'app.py:2: service "local": name: service name "local" is reserved: resolvers ask for such names by multicast'
        " (RFC 6762 §3); give it another name"
    )
