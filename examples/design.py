# The example that meshbox was first designed for. examples/app.py is the one that stays up: `bash` ends at once.
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
