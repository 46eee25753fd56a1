#!/bin/bash
# The same with the fast path in the drivers of both router ports.
XDP=on exec "$(dirname "${BASH_SOURCE[0]}")/dut.sh" "$@"
