#!/usr/bin/env python3
"""Where each nanosecond of a packet goes: perf's samples of the router's thread while the bench runs, as a table.

  where.py BENCH WORKLOAD DUT[,DUT...]      BENCH: the bench's directory; the reference is measured too

A device's time per packet is the bench's own figure; what share of it is spent where is perf's (cpu-clock, so what
interrupts cannot interrupt is found at its end). Needs root, perf, and what the bench needs.
"""

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The first that matches. What a packet meets, in that order.
PARTS = [
    ("the frame out of the ring, the loop around it", r"veth_xdp_rcv|veth_poll|__napi_poll|napi_thread|ptr_ring"),
    ("a socket buffer for it", r"build_skb|xdp_build_skb|napi_skb_cache|eth_type_trans|slab_alloc|cache_alloc|skb_cache|memset|skb_get_hash"),
    ("receive offload (GRO), and up to the hooks", r"gro|netif_receive_skb|netif_rx|skb_defer_rx|skb_list|tc_run|tcx_run|sch_handle|cls_bpf|tcf_classify"),
    ("look-ups in maps", r"htab|lookup_nulls|map_lookup|jhash|memcmp"),
    ("helpers: checksum, clock, redirect", r"csum|skb_checksum|bpf_redirect|bpf_ktime|skb_do_redirect|skb_ensure|bpf_skb_|dev_hash_map_redirect|bpf_xdp|__bpf_"),
    # One part: each calls the others, and their names do not keep them apart.
    ("bridge, routing, netfilter", r"^br_|fdb_|fib|^ip_|^ip6_|neigh|ipv6_|rt6|route|dst_|inet6?_|l3mdev|xfrm|arp|^udp|flow_dissect"
     r"|^nf_|^nft_|conntrack|siphash|nat_|iptable|^xt_|ipt_|nf_hook|sabotage"),
    ("out: queue, features, to the other device", r"dev_queue_xmit|hard_start_xmit|validate_xmit|skb_features|network_protocol|passthru|pick_tx|veth_xmit|dev_forward|forward_skb|skb_scrub|clone_tx|xdp_do_redirect|dev_xdp|bq_|veth_xdp_xmit|xdp_do_flush"),
    ("the bench's sink; the memory back", r"bpf_prog_\w+_sink|free|page_pool|xdp_return|pp_put|consume_skb|skb_release|slab_|netmem|put_page|page_frag"),
    ("locks, RCU, return thunks", r"spin|lock|rcu|thunk|local_bh|preempt"),
]
PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}_(\w+)")
MEASURED = re.compile(r"^\[ *\d+s\] \S+ #0 (\S+): .* (\d+) ns/packet", re.M)


def part(symbol):
    program = PROGRAM.match(symbol)
    if program and program[1] != "sink":
        return f"`{program[1]}`"
    return next((name for name, pattern in PARTS if re.search(pattern, symbol)), "everything else")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    bench, workload, duts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        samples = Path(scratch) / "perf.data"
        run = subprocess.run(
            ["perf", "record", "-q", "-a", "-e", "cpu-clock", "-F", "4999", "-o", samples, "--", "./bench.py"]
            + ["--rounds", "1", "--ms", "5000", "--no-retry", "--work", workload, "--dut", duts],
            cwd=bench, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        measured = MEASURED.findall(run.stdout)
        script = subprocess.run(["perf", "script", "-i", samples, "-F", "tid,ip,sym"],
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    # The router's thread of each measurement, in the order in which they were seen. The first is of the bench's own, which begins by
    # measuring how much it can offer.
    threads = collections.defaultdict(collections.Counter)
    for line in script.splitlines():
        thread, _, symbol = line.split(None, 2)
        threads[thread][symbol] += 1
    routers = [symbols for symbols in threads.values()
               if sum(symbols.values()) > 2000 and any(name.startswith("veth_xdp_rcv") for name in symbols)]
    if run.returncode or len(routers) != len(measured) + 1:
        sys.exit(f"{run.stdout}\n{len(measured)} devices measured, and {len(routers)} threads that received")

    columns = []
    for (name, nanoseconds), symbols in zip(measured, routers[1:]):
        column = collections.Counter()
        for symbol, times in symbols.items():
            column[part(symbol)] += times * int(nanoseconds) / sum(symbols.values())
        columns.append((name, int(nanoseconds), column))
    known = [name for name, _ in PARTS]
    programs = sorted({name for _, _, column in columns for name in column if name.startswith("`")})
    print("| " + " | ".join([workload] + [name for name, _, _ in columns]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row in known[:3] + programs + known[3:] + ["everything else"]:
        figures = [round(column[row]) for _, _, column in columns]
        if any(figures):
            print("| " + " | ".join([row] + [str(figure) if figure else "" for figure in figures]) + " |")
    print("| " + " | ".join(["**all**"] + [f"**{total}**" for _, total, _ in columns]) + " |")


main()
