"""The example: two services, three containers, one of them allowed to call another service.

`meshbox deploy examples/app.py` makes flask.flask:8080, redis.flask:8080 and apple.orange:8080.
`service` and `container` need no import; for an editor: from appliance.spec.dsl import container, service
"""

# Answers every TCP connection and every datagram with its host name and what it was told.
ECHO = """
import signal, socket, sys, threading
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
name = socket.gethostname().encode()
def datagrams(s):
    while True:
        data, caller = s.recvfrom(65535)
        s.sendto(name + b" " + data, caller)
def serve(connection):
    with connection:
        connection.sendall(name + b" ")
        while data := connection.recv(65536):
            connection.sendall(data)
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("", 8080))
threading.Thread(target=datagrams, args=(udp,), daemon=True).start()
with socket.create_server(("", 8080), backlog=1024) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

flask = service(
    "flask",
    count=2,
    containers=[
        container(
            "flask",
            image="crccheck/hello-world",
            ports=["8080/udp", "8080:8000"],  # it listens on 8000
            cpu=500,
            memory=256,
            connect_to=["apple.orange:8080"],
        ),
        container("redis", image="redis", ports=["8080:6379"]),
    ],
)

orange = service(
    "orange",
    containers=[
        container(
            "apple",
            image="python:3.11-slim",
            ports=[8080, "8080/udp"],
            command=["python3", "-c", ECHO],
        ),
    ],
)
