#!/bin/bash
# The worker's VLAN filter as a device under test of the bench's l2 rows; see dut.sh, whose settings hold here too.
# The bench's bridge is nobody's of the worker, and such are left alone: it is made again by the worker, with the same
# ports.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
worker=${TELECLUSTER_WORKER_BIN:-$checkout/target/release/telecluster-worker}
port=987

call() {
  curl -sS --fail-with-body --max-time 30 -o "$TCB_DIR/answer" "http://127.0.0.1:$port$1" "${@:2}" ||
    { cat "$TCB_DIR/answer"; tail -n 20 "$TCB_DIR/worker.log"; exit 1; }
}

case "$1" in
caps) echo l2 l2-vlan ;;
version) git -C "$checkout" describe --always --dirty 2>/dev/null || echo unknown ;;
up)
  ip link set lo up
  PORT=$port HOST=127.0.0.1 STATE_DIR=$TCB_DIR/state LOG_LEVEL=WARNING FLOW_CAPACITY=1024 \
    "$worker" >"$TCB_DIR/worker.log" 2>&1 </dev/null &
  echo $! >"$TCB_DIR/worker.pid"
  for _ in $(seq 200); do
    curl -sS -o /dev/null "http://127.0.0.1:$port/health" 2>/dev/null && break
    sleep 0.05
  done
  # Without VLANs the worker leaves a bridge to the kernel.
  [ -n "$TCB_VLANS" ] || exit 0
  ip link del "$TCB_BRIDGE"
  call /bridge/create -d "{\"name\": \"$TCB_BRIDGE\"}"
  echo 0 >"/sys/class/net/$TCB_BRIDGE/bridge/multicast_snooping"
  for pair in $TCB_VLANS; do
    call /bridge/add-port -d \
      "{\"bridge_name\": \"$TCB_BRIDGE\", \"port_name\": \"${pair%=*}\", \"vlan\": ${pair#*=}}"
  done
  ;;
down)
  pid=$(cat "$TCB_DIR/worker.pid")
  kill "$pid" 2>/dev/null || exit 0
  for _ in $(seq 50); do
    grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status" || exit 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  ;;
*) exit 2 ;;
esac
