"""The marks by which a process knows that it runs in the image, and what the image is run with."""

from __future__ import annotations

from pathlib import Path

from appliance import image


def test_only_the_image_has_its_mark():
    """The Dockerfile copies the health check there."""
    dockerfile = Path(__file__).parent.parent / "Dockerfile"
    assert str(image.IMAGE_MARK) in dockerfile.read_text()


def test_the_options_make_it_the_whole_appliance():
    """Docker's socket, a state that outlives the container, and the host's processes."""
    words = image.RUN_OPTIONS.split()
    assert words[0] == "--pid=host"
    assert words[1::2] == ["-v", "-v"]
    assert words[2::2] == ["/var/run/docker.sock:/var/run/docker.sock", "/var/lib/meshbox:/var/lib/meshbox"]
