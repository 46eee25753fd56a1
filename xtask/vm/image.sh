#!/bin/bash
# Builds what the test VM boots from.
#   image.sh base  KERNEL_TREE BUSYBOX INIT OUT   OUT/vmlinuz and OUT/base.cpio: modules, tools, init
#   image.sh extra BUSYBOX OUT FILE:DEST...       OUT/extra.cpio: what changes from run to run
# KERNEL_TREE is an unpacked kernel package, BUSYBOX a static busybox. The tools are this
# machine's own, with their libraries. Archives are not compressed: an emulated CPU unpacks slowly.
set -euo pipefail

# What tests use: links of every kind we make, TC and its actions, and the packet filters (to
# prove that they hold no rule). Missing ones are skipped: a kernel may have them built in.
modules="veth bridge br_netfilter 8021q dummy bonding tun vxlan geneve sch_ingress cls_bpf cls_u32 act_bpf act_gact
  sch_netem sch_tbf nf_tables nft_chain_nat nft_compat nft_ct nft_masq nft_nat nft_counter nf_conntrack nf_nat
  nf_conntrack_netlink nf_flow_table ip_tables iptable_nat iptable_filter xt_MASQUERADE xt_conntrack
  xt_nat xt_limit xt_mark xt_REDIRECT xt_TCPMSS xt_addrtype xt_hashlimit iptable_mangle ip6_tables ip6table_nat ip6table_mangle ip6table_filter xt_comment xt_tcpudp ipt_REJECT ip6t_REJECT nft_reject_ipv4
  nft_limit nft_reject_ipv6 nft_reject_inet af_packet openvswitch inet_diag tcp_diag sch_fq sch_fq_codel"
tools="bash ip bridge tc bpftool ping nft ethtool curl nsenter unshare setpriv timeout strace flock
  ovs-vswitchd ovsdb-server ovsdb-tool ovs-vsctl"
# Names of one program, which tests replace by the old one.
iptables="iptables ip6tables iptables-restore ip6tables-restore iptables-save ip6tables-save"

# A program with its shared libraries. Debug information stays behind.
add() {
  local from=$1 to=$root/$2
  mkdir -p "$(dirname "$to")"
  cp -L "$from" "$to"
  strip --strip-debug "$to" 2>/dev/null || true
  chmod +x "$to"
  { ldd "$from" 2>/dev/null || true; } | { grep -oE '/[^ ]+\.so[^ ]*' || true; } | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")"
    [ -e "$root$lib" ] || cp -L "$lib" "$root$lib"
  done
}

archive() { (cd "$root" && find . -mindepth 1 | "$busybox" cpio -o -H newc 2>/dev/null) >"$1"; }

base() {
  local tree=$1 init=$3 out=$4 from version
  busybox=$2
  from=$(dirname "$(find "$tree" -path '*/modules/*/kernel' -type d | head -1)")
  version=$(basename "$from")
  find "$tree" -name 'vmlinuz*' -exec cp {} "$out/vmlinuz" \; -quit

  mkdir -p "$root"/{bin,sbin,usr/sbin,usr/lib,lib64,proc,sys,dev,run,tmp,etc,root}
  # Libraries are found under /lib and /usr/lib alike.
  ln -s usr/lib "$root/lib"
  ln -s ../lib64 "$root/usr/lib64"
  # So are programs, as on Debian: /usr/bin is in the PATH that the worker gives to iptables, /bin is not.
  ln -s ../bin "$root/usr/bin"
  mkdir -p "$root/lib/modules/$version"
  # modprobe wants its modules below lib/modules, also where the package has them in usr/lib.
  [ -d "$tree/lib" ] || ln -s usr/lib "$tree/lib"
  depmod -b "$tree" "$version" 2>/dev/null
  for module in $modules; do
    modprobe -d "$tree" -S "$version" --show-depends "$module" 2>/dev/null || true
  done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
    to=$root/lib/modules/$version/${file##*/"$version"/}
    mkdir -p "$(dirname "$to")"
    cp "$file" "$to"
    [ "${to%.xz}" = "$to" ] || xz -d "$to"
  done
  # Lists of what is built in; not every package has them.
  for list in builtin order builtin.modinfo; do
    if [ -f "$from/modules.$list" ]; then cp "$from/modules.$list" "$root/lib/modules/$version/"; fi
  done
  depmod -b "$root" "$version" 2>/dev/null

  cp "$busybox" "$root/bin/busybox"
  for applet in $("$busybox" --list | grep -vx busybox); do ln -s busybox "$root/bin/$applet"; done
  for tool in $tools modprobe; do
    path=$(command -v "$tool") || continue
    # The real tool wins over busybox's applet of that name, wherever a script looks for it.
    rm -f "$root/bin/$tool"
    add "$path" "bin/$tool"
    ln -sf "../bin/$tool" "$root/sbin/$tool"
  done
  for program in xtables-nft-multi xtables-legacy-multi; do
    if path=$(command -v "$program"); then add "$path" "usr/sbin/$program"; fi
  done
  for tool in $iptables; do
    for dir in bin sbin; do ln -sf ../usr/sbin/xtables-nft-multi "$root/$dir/$tool"; done
  done
  schema=/usr/share/openvswitch/vswitch.ovsschema
  if [ -f "$schema" ]; then install -D "$schema" "$root$schema"; fi
  # What iptables knows of matches and targets it loads by name.
  for plugin in libxt_standard libxt_comment libxt_tcp libxt_udp libxt_MASQUERADE libxt_DNAT libxt_SNAT libxt_NAT \
    libxt_addrtype libxt_conntrack libxt_hashlimit libxt_limit libxt_mark libxt_REDIRECT libxt_TCPMSS libipt_REJECT libip6t_REJECT; do
    for file in /usr/lib/*/xtables/$plugin.so; do if [ -f "$file" ]; then add "$file" "${file#/}"; fi; done
  done
  # busybox's shell prefers its own applets to the tools on PATH.
  ln -sf bash "$root/bin/sh"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
  cp "$init" "$root/init"
  chmod +x "$root/init"
  archive "$out/base.cpio"
}

extra() {
  local out=$2
  busybox=$1
  shift 2
  mkdir -p "$root/usr/lib"
  # As in the base: the kernel unpacks both archives over each other.
  ln -s usr/lib "$root/lib"
  for entry in "$@"; do add "${entry%:*}" "${entry##*:}"; done
  rm "$root/lib"
  archive "$out/extra.cpio"
}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mode=$1
shift
"$mode" "$@"
