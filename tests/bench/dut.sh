#!/bin/bash
# The worker as a device under test of the bench, which starts this inside a router's network
# namespace with a private /sys and an empty bpffs; the contract is in the bench's template.sh.
#
#   TELECLUSTER_WORKER_BIN  the agent; else the checkout's release build
#   FLOW_CAPACITY           flows that the tables hold; the largest workload opens a million
#   UNPROVEN_FLOWS          how many of them need no answer: a million on each CPU, the bench sends through one and never answers
#   XDP                     off (default), auto (off on the veth pairs of the bench) or on: the fast path in drivers, which wants whole
#                           checksums
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
worker=${TELECLUSTER_WORKER_BIN:-$checkout/target/release/telecluster-worker}

case "$1" in
caps) echo snat dnat snat6 dnat6 $([ "${XDP:-off}" != on ] || echo checksums) ;;
version) git -C "$checkout" describe --always --dirty 2>/dev/null || echo unknown ;;
up)
  # The namespace is ours alone: any port outside the forwards and the ephemeral range is free.
  port=987
  unproven=$(($(nproc --all) * 1048576))
  [ $unproven -le 8388608 ] || unproven=8388608
  ip link set lo up
  PORT=$port HOST=127.0.0.1 STATE_DIR=$TCB_DIR/state WAN_INTERFACE=$TCB_WAN_IF LOG_LEVEL=WARNING XDP=${XDP:-off} \
    FLOW_CAPACITY=${FLOW_CAPACITY:-1200000} UNPROVEN_FLOWS=${UNPROVEN_FLOWS:-$unproven} "$worker" >"$TCB_DIR/worker.log" 2>&1 </dev/null &
  pid=$!
  echo $pid >"$TCB_DIR/worker.pid"
  if ! PORT=$port WORKER_PID=$pid python3 - <<'PY'; then
import http.client, json, os, sys, time

# One connection for all calls: ten thousand rules in well under two minutes.
api = http.client.HTTPConnection("127.0.0.1", int(os.environ["PORT"]), timeout=60)

def call(method, path, body=None):
    api.request(method, path, body and json.dumps(body))
    answer = api.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        sys.exit(f"{method} {path} {body or ''}: {answer.status} {text}")

deadline = time.monotonic() + 20
while True:
    try:
        call("GET", "/health")
        break
    except OSError:
        api.close()
        try:
            with open(f"/proc/{os.environ['WORKER_PID']}/stat") as stat:
                ended = stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            ended = True
        if ended or time.monotonic() > deadline:
            sys.exit("the worker does not answer")
        time.sleep(0.02)

env = os.environ
call("POST", "/nat/masquerade", {"source_network": env["TCB_INT_NET"], "output_interface": env["TCB_WAN_IF"]})
with open(env["TCB_RULES"]) as rules:
    for rule in rules:
        protocol, port, inside, inside_port = rule.split()
        call("POST", "/nat/forward", {"protocol": protocol, "external_port": int(port), "internal_ip": inside,
                                      "internal_port": int(inside_port), "interface": env["TCB_WAN_IF"]})
PY
    tail -n 20 "$TCB_DIR/worker.log"
    exit 1
  fi
  ;;
down)
  pid=$(cat "$TCB_DIR/worker.pid")
  kill "$pid" 2>/dev/null || exit 0
  for _ in $(seq 50); do
    # Nobody may be there to reap it: a zombie has ended too.
    grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status" || exit 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  ;;
*) exit 2 ;;
esac
