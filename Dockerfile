# docker build -t telecluster-worker .
# docker run -d --name telecluster-worker --network host --privileged --restart unless-stopped \
#     -v /sys/fs/bpf:/sys/fs/bpf -v /var/lib/telecluster:/var/lib/telecluster telecluster-worker
#
# --network host: the worker manages this server's interfaces, and its API listens on 127.0.0.1
# of the server. --privileged grants what it needs (NET_ADMIN, BPF, SYS_ADMIN); the two volumes
# keep rules and open flows over a restart.

# Debian's own compiler builds everything; xtask's setup adds what the eBPF programs need.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev rustc-web cargo-web rust-web-src
WORKDIR /src
COPY . .
ENV CARGO_TARGET_DIR=/target
RUN cargo xtask build --release

FROM debian:bookworm-slim
COPY --from=build /target/release/telecluster-worker /usr/local/bin/
# Documentation only: --network host publishes nothing.
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/telecluster-worker"]
