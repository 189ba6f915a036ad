# The appliance as an image:   make image
#   docker run -d --name meshbox --net=host --privileged --pid=host --restart unless-stopped \
#     -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/meshbox:/var/lib/meshbox meshbox
# Without the second line, and without --pid=host, it is a gateway: `docker run --net=host --privileged meshbox`.
#
# Where a build host has its own package index, name it as pip and apt know it:
#   docker build --build-arg PIP_INDEX_URL=… --build-arg http_proxy=… --build-arg BASE=…
# None of that gets into the image: pip runs in a stage of its own, and Docker keeps proxy arguments out of layers.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 nftables python3 util-linux \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
        /usr/share/doc/* /usr/share/man/* /usr/lib/python3*/pydoc_data /usr/lib/python3*/test \
    && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +

FROM system AS build
# By this `docker image prune` finds what the build leaves; see docs/guide/operating.md.
LABEL meshbox.stage=build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends binutils ca-certificates gcc python3-dev python3-venv
WORKDIR /source
COPY . .
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_FIND_LINKS PIP_NO_INDEX
ARG REVISION=
RUN MESHBOX_COMMIT="$(echo "$REVISION" | cut -c1-7)" packaging/environment.sh /usr/lib/meshbox

FROM system
COPY --from=build /usr/lib/meshbox /usr/lib/meshbox
COPY packaging/healthcheck.py /usr/lib/meshbox/healthcheck.py
# Importing compiles what is used, of Python's own library too, and nothing else.
RUN ln -s ../lib/meshbox/bin/meshbox /usr/bin/meshbox \
    && /usr/lib/meshbox/bin/python -c "import appliance.app.main, appliance.cli.cleanup, appliance.cli.run" \
    && meshbox --help >/dev/null
# With --pid=host the host's own root, and otherwise this container's, where the directory can be mounted.
ENV MESHBOX_NETNS_DIR=/proc/1/root/run/docker/netns
# Without Docker's socket it is a gateway; the resolv.conf in here is a copy, which the host does not read.
ENV MESHBOX_GATEWAY=auto MESHBOX_RESOLV_CONF=
# `docker stop` kills after 10 seconds unless told otherwise; by then connections are drained and rules gone.
ENV MESHBOX_DRAIN=5
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="meshbox" \
    org.opencontainers.image.description="One appliance per machine that turns plain Docker hosts into a service mesh" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.base.name="debian:bookworm-slim" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["/usr/bin/python3", "-IS", "/usr/lib/meshbox/healthcheck.py"]
ENTRYPOINT ["meshbox"]
CMD ["run"]
