#!/bin/bash
# The same in the drivers of all ports. That is for bridges with VLANs: where the bench asks for none, all ports are in one.
TCB_VLANS=${TCB_VLANS:-$(printf '%s=1 ' ${TCB_PORTS:-})}
export TCB_VLANS XDP=on
exec "$(dirname "${BASH_SOURCE[0]}")/l2.sh" "$@"
